"""The pages of docs/, as text, commands and code, and the photographs that they assume."""
import contextlib
import io
import re
import shlex
from pathlib import Path

import torch
from PIL import Image

from igczoo.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding='utf-8') for path in sorted((ROOT / 'docs').glob('*.md'))}


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of one language on a page."""
    return re.findall(rf'^```{language}\n(.*?)^```', PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """What follows `igczoo` in each command of a page."""
    lines = ''.join(blocks(page, 'sh')).splitlines()
    found = [shlex.split(line) for line in lines if not line.startswith('pip install')]
    assert all(words[0] == 'igczoo' for words in found), found
    return [words[1:] for words in found]


def make_photographs(folder: Path) -> None:
    """photos/ and other_photos/val/ with two examples as classes, windows of which are the photographs; and examples/."""
    for name, example in (('church', 'lighthouse'), ('gas pump', 'school_bus')):
        with Image.open(ROOT / 'examples' / f'{example}.jpg') as image:
            square = image.convert('RGB').resize((280, 280))
        for data in ('photos', 'other_photos/val'):
            (folder / data / name).mkdir(parents=True)
            for i, letter in enumerate('abcdef'):
                square.crop((8 * i, 5 * i, 8 * i + 224, 5 * i + 224)).save(folder / data / name / f'{letter}.jpg')
    (folder / 'examples').symlink_to(ROOT / 'examples')


def run_command(arguments: list[str]) -> str:
    """What the command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0, arguments
    return out.getvalue()


def check_code(code: str) -> None:
    """Run a block of Python; it prints what its comments say."""
    expected = [line.removeprefix('# ') for line in code.splitlines() if line.startswith('# ')]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, 'a page', 'exec'), {'__name__': 'page'})
    assert expected and out.getvalue().splitlines() == expected
