"""The commands and the code of the pages in docs/ run, on photographs that a page may assume, and print what is said there."""
import re
import warnings
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, blocks, check_code, commands, make_photographs, run_command

OWN = 'your-own-photographs'
HERE = [page for page in PAGES if page not in ('with-others', 'batch')]     # whose code needs nothing but this package


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('docs')
    make_photographs(root)
    return root


@pytest.mark.parametrize('page', [page for page in HERE if page != OWN and commands(page)])
def test_the_commands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of the exporter's own libraries
        assert all(run_command(arguments).strip() for arguments in commands(page))


def test_the_commands_for_your_own_photographs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments in commands(OWN):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            out = run_command(' '.join(arguments).replace('--minutes 5', '--epochs 1').split(' '))
        assert out.strip(), arguments
        if arguments[0] == 'classify':
            assert 'church' in out.splitlines()[0]
    for name in ('curves.png', 'confusion.png', 'calibration.png', 'split.csv', 'README.md', 'card.json', 'model.safetensors'):
        assert (folder / 'my_model' / name).exists()
    for name in ('predictions.csv', 'report/index.html', 'heat.png', 'my_model.onnx'):
        assert (folder / name).exists()


@pytest.mark.parametrize(('page', 'code'), [pytest.param(page, code, id=page) for page in HERE for code in blocks(page, 'python')])
def test_the_code_prints_what_its_comments_say(page, code, folder, tmp_path, monkeypatch):
    for name in ('photos', 'examples'):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    check_code(code)


@pytest.mark.parametrize(('page', 'target'), [
    (page, target) for page, text in PAGES.items() for target in re.findall(r'\]\((?!http)([^)#]+)', text)])
def test_links_lead_somewhere(page, target):
    generated = target.startswith('checkpoints/') or target == 'zoo.md'     # by docs/pages.py
    assert generated or (ROOT / 'docs' / target).exists()


def test_figures_are_small_and_shown():
    shown = set(re.findall(r'\]\(figures/([^)]+)\)', ''.join(PAGES.values())))
    figures = {path.name: path.stat().st_size for path in (ROOT / 'docs' / 'figures').iterdir()}
    assert shown == set(figures) and max(figures.values()) < 200_000
