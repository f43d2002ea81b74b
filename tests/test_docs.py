"""The commands and the code of the pages in docs/ run, on photographs that a page may assume, and print what is said there."""
import contextlib
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from igczoo.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'your-own-photographs.md'
TEXT = PAGE.read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Two examples as classes: windows of each are its photographs."""
    root = tmp_path_factory.mktemp('docs')
    for name, example in (('church', 'lighthouse'), ('gas pump', 'school_bus')):
        with Image.open(ROOT / 'examples' / f'{example}.jpg') as image:
            square = image.convert('RGB').resize((280, 280))
        for data in ('photos', 'other_photos/val'):
            (root / data / name).mkdir(parents=True)
            for i, letter in enumerate('abcdef'):
                square.crop((8 * i, 5 * i, 8 * i + 224, 5 * i + 224)).save(root / data / name / f'{letter}.jpg')
    return root


def test_the_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for line in ''.join(blocks('sh')).splitlines():
        program, *arguments = shlex.split(line.replace('--minutes 5', '--epochs 1'))
        assert program == 'igczoo'
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')     # of the exporter's own libraries
            assert main(arguments) == 0, line
        out = capsys.readouterr().out
        assert out.strip(), line
        if arguments[0] == 'classify':
            assert 'church' in out.splitlines()[0]
    for name in ('curves.png', 'confusion.png', 'calibration.png', 'split.csv', 'README.md', 'card.json', 'model.safetensors'):
        assert (folder / 'my_model' / name).exists()
    for name in ('predictions.csv', 'report/index.html', 'heat.png', 'my_model.onnx'):
        assert (folder / name).exists()


def test_the_code_prints_what_its_comments_say(folder, tmp_path, monkeypatch):
    (tmp_path / 'photos').symlink_to(folder / 'photos')
    monkeypatch.chdir(tmp_path)
    [code] = blocks('python')
    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.random.fork_rng():
        exec(compile(code, PAGE.name, 'exec'), {})
    expected = [line.removeprefix('# ') for line in code.splitlines() if line.startswith('# ')]
    assert expected and out.getvalue().splitlines() == expected


@pytest.mark.parametrize('target', re.findall(r'\]\((?!http)([^)]+)\)', TEXT))
def test_links_lead_somewhere(target):
    assert (PAGE.parent / target).exists()
