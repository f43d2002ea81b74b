"""The README's commands and code do what it prints."""
import contextlib
import io
import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest

from igczoo.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', README, re.MULTILINE | re.DOTALL)


def test_the_first_command_classifies_an_example(capsys, monkeypatch):
    install, _, classify = blocks('sh')[0].strip().partition(' && ')
    program, *arguments = shlex.split(classify)
    assert (install, program) == ('pip install .', 'igczoo')
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 0
    assert 'sports car' in capsys.readouterr().out.splitlines()[0]


def test_the_second_command_runs_the_tests():
    assert blocks('sh')[1].strip() == "pip install '.[test]' && pytest"


def test_the_code_prints_what_its_comments_say(monkeypatch):
    [code] = blocks('python')
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        exec(compile(code, 'README.md', 'exec'), {})
    expected = [line.removeprefix('# ') for line in code.splitlines() if line.startswith('# ')]
    assert expected and out.getvalue().splitlines() == expected


def test_the_times_are_those_measured():
    speed = runpy.run_path(str(ROOT / 'benchmarks' / 'speed.py'))
    rows = speed['read_rows']()
    assert speed['with_table'](README, rows) == README and speed['readme_table'](rows) in README
    assert len({(row.host, row.size) for row in rows}) == 1     # one run


@pytest.mark.parametrize('target', re.findall(r'\]\((?!http)([^)]+)\)', README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
