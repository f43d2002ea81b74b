"""The command line: what it prints, for people and for programs, and its exit status."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igczoo.card import cards
from igczoo.cli import DEFAULT_MODEL, main

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / 'examples' / 'sports_car.jpg'


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_list(capsys):
    status, out, _ = run(capsys, 'list')
    assert status == 0 and all(name in out for name in cards())
    status, out, _ = run(capsys, 'list', '--json')
    assert [entry['name'] for entry in json.loads(out)] == sorted(cards())


def test_info(capsys):
    status, out, _ = run(capsys, 'info', DEFAULT_MODEL)
    assert status == 0 and 'bundled' in out and ': ok' in out and 'airplane' in out
    status, out, _ = run(capsys, 'info', 'igcnet18.in1k', '--json')
    card = json.loads(out)
    assert status == 0 and card['name'] == 'igcnet18.in1k' and card['params'] == 8637900 and card['copies'][0]['state'] == 'absent'


def test_classify_prints_a_table_or_json(capsys):
    status, out, err = run(capsys, 'classify', PHOTOGRAPH, '-k', 3)
    lines = out.splitlines()
    assert status == 0 and not err and len(lines) == 3
    assert lines[0].startswith(str(PHOTOGRAPH)) and lines[0].endswith('automobile')
    status, out, _ = run(capsys, 'classify', PHOTOGRAPH, '-k', 3, '--json')
    predictions = json.loads(out)[0]['predictions']
    assert [prediction['label'] for prediction in predictions] == [line.split()[-1] for line in lines]
    assert f'{predictions[0]["score"]:.2%}' in lines[0]


def test_classify_takes_folders_and_goes_on_after_a_bad_file(capsys, tmp_path):
    (tmp_path / 'deep').mkdir()
    for name in ('b.png', 'deep/a.png'):
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / 'c.jpg').write_bytes(b'no image')
    status, out, err = run(capsys, 'classify', tmp_path, '--json')
    results = json.loads(out)
    assert status == 1 and [Path(result['image']).name for result in results] == ['b.png', 'c.jpg', 'a.png']
    assert 'error' in results[1] and len(results[0]['predictions']) == 5
    assert err.startswith('igczoo classify: ') and 'c.jpg' in err and err.count('\n') == 1


def test_verify(capsys):
    status, out, _ = run(capsys, 'verify', DEFAULT_MODEL)
    assert status == 0 and out.startswith('ok ')
    status, out, _ = run(capsys, 'verify', '--all', '--json')
    assert status == 0 and all(copy['state'] == 'ok' for copy in json.loads(out))


def test_evaluate_and_train(capsys, tmp_path):
    labels = cards()[f'{DEFAULT_MODEL}.cifar10'].labels
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in labels:
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for i in range(13):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    status, out, _ = run(capsys, 'evaluate', DEFAULT_MODEL, '--data', tmp_path / 'data', '--json')
    assert status == 0 and json.loads(out)['accuracy']['n'] == 130
    status, out, _ = run(capsys, 'evaluate', DEFAULT_MODEL, '--data', tmp_path / 'data')
    assert status == 0 and 'on data, 130 images: top-1 ' in out
    status, out, _ = run(capsys, 'train', 'cifar10_igc_resnet20_l24m2', '--data', tmp_path / 'data', '--out', tmp_path / 'run',
                         '--epochs', 1, '--device', 'cpu')
    assert status == 0 and 'after 1 epochs' in out and (tmp_path / 'run' / 'model.safetensors').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['info', 'nonesuch'], "igczoo info: 'nonesuch' is no checkpoint; there are "),
    (['classify', 'nonesuch.jpg'], 'igczoo classify: nonesuch.jpg: there is no such file'),
    (['classify', 'x.jpg', '--model', 'nonesuch'], "igczoo classify: 'nonesuch' is no checkpoint; there are "),
    (['evaluate', DEFAULT_MODEL, '--data', 'nonesuch'], 'igczoo evaluate: nonesuch: found no evaluation images'),
    (['train', 'nonesuch', '--data', 'x'], "igczoo train: recipe 'nonesuch' is unknown; there are "),
    (['convert', 'x.params', '--model', 'nonesuch', '-o', 'x'], "igczoo convert: there is no conversion to 'nonesuch'; there is one to "),
    (['convert', 'x.params', '--model', 'igcnet18', '-o', 'nonesuch'], 'igczoo convert: '),
])
def test_a_mistake_is_one_line_and_status_1(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 1 and not out and err.startswith(message) and err.count('\n') == 1


@pytest.mark.parametrize('arguments', [[], ['nonesuch'], ['classify'], ['classify', 'x.jpg', '-k', '0'], ['verify'], ['evaluate', 'x']])
def test_a_wrong_call_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and 'usage: igczoo' in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    for command in ('list', 'info', 'classify', 'verify', 'evaluate', 'train', 'convert'):
        with pytest.raises(SystemExit) as stop:
            main([command, '--help'])
        assert stop.value.code == 0 and f'igczoo {command}' in capsys.readouterr().out


def test_a_process_ends_with_the_status_and_no_traceback():
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    result = subprocess.run([sys.executable, '-m', 'igczoo.cli', 'info', 'nonesuch'], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
