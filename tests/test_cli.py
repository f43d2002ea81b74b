"""The command line: what it prints, for people and for programs, and its exit status."""
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from igczoo import __version__
from igczoo.checkpoints.card import cards
from igczoo.cli import main
from igczoo.deployment import bench, quantize
from igczoo.deployment.quantize import Quantized
from igczoo.inference.classifier import FEW, MANY, Classifier, deployed_as_asked, load

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / 'examples' / 'sports_car.jpg'
CIFAR = 'igc_resnet20_l24m2'


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_a_file_that_is_not_there_is_named_first(tmp_path, capsys):
    missing = tmp_path / 'nothing.params'
    status, _, err = run(capsys, 'convert', missing, '--model', 'igcnet18', '-o', tmp_path / 'out')
    assert status == 1 and err == f'igczoo convert: {missing}: No such file or directory\n'


def test_of_two_files_the_one_written_to_is_named(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, 'No space left on device', str(tmp_path / '.beside.part'), None, str(tmp_path / 'wanted'))

    monkeypatch.setattr('igczoo.checkpoints.convert.convert_folder', fail)
    assert run(capsys, 'convert', 'a.params', '--model', 'igcnet18', '-o', 'out')[2] == (
        f'igczoo convert: {tmp_path / "wanted"}: No space left on device\n')


def test_a_recipe_with_a_teacher_needs_one_and_others_take_none(tmp_path, capsys):
    for arguments, message in ((('tinyimagenet_igcnet18_taught',), 'the recipe has a teacher; name one (--teacher)'),
                               (('cifar10_igcv3_025', '--teacher', CIFAR), 'the recipe has no teacher; leave it out')):
        with pytest.raises(SystemExit, match='2'):
            run(capsys, 'train', *arguments, '--data', tmp_path)
        assert message in capsys.readouterr().err


def test_list(capsys):
    status, out, _ = run(capsys, 'list')
    assert status == 0 and all(name in out for name in cards())
    status, out, _ = run(capsys, 'list', '--json')
    assert [entry['name'] for entry in json.loads(out)] == sorted(cards())


def test_info(capsys):
    status, out, _ = run(capsys, 'info', CIFAR)
    assert status == 0 and 'airplane, automobile' in out and 'bundled  ok ' in out
    assert '  parameters     157,498\n' in out and '10,000     88.25  87.60 to 88.87     99.44' in out
    assert not set('{}()[]') & set(out.partition('Where it comes from')[0].replace('(JPEG q75)', '').replace('(lossless)', ''))
    status, out, _ = run(capsys, 'info', 'igcnet18.in1k', '--json')
    card = json.loads(out)
    assert status == 0 and card['name'] == 'igcnet18.in1k' and card['params'] == 8637900 and card['copies'][0]['state'] == 'absent'


def test_list_and_info_of_many_classes_and_no_accuracy(capsys, monkeypatch):
    ids = tuple(f'n{number:08}' for number in range(200))
    card = replace(cards()[f'{CIFAR}.cifar10'], accuracy=(), labels=ids, label_ids=ids, imagenet_indices=tuple(range(200)))
    monkeypatch.setattr('igczoo.cli.cards', lambda: {card.name: card})
    monkeypatch.setattr('igczoo.cli.find_card', lambda name: card)
    monkeypatch.setattr('igczoo.cli.list_models', lambda: [card.name])
    status, out, _ = run(capsys, 'list')
    assert status == 0 and 'top-1, %' not in out and out.splitlines()[1].startswith(f'  {card.name} *')
    status, out, _ = run(capsys, 'info', card.name)
    assert status == 0 and ' 200: n00000000, ' in out and 'n00000009, ...' in ' '.join(out.split()) and 'n00000010' not in out


@pytest.mark.parametrize('width', [60, 80, 200])
def test_the_page_of_every_checkpoint_is_wrapped(capsys, monkeypatch, width):
    monkeypatch.setenv('COLUMNS', str(width))
    for card in cards().values():
        status, out, _ = run(capsys, 'info', card.name)
        prose = out.partition('Where it comes from\n')[2].partition('\n\n')[0]
        assert status == 0 and all(word in out.split() for word in f'{card.provenance} {card.limits} {card.terms}'.split())
        assert all(len(line) <= min(width, 100) for line in prose.splitlines())


def test_a_folder_is_a_table(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, err = run(capsys, 'classify', 'examples', '-k', 2)
    lines = out.splitlines()
    assert status == 0 and not err and len(lines) == 16
    assert lines[8].split() == ['examples/pizza.jpg', '49.21%', 'pizza'] and lines[9].split()[0] == '4.55%'
    assert len({line.index('%') for line in lines}) == 1    # aligned


def in_a_shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    command = command.replace('igczoo', f'{sys.executable} -m igczoo')
    return subprocess.run(['sh', '-c', command], cwd=ROOT, env=os.environ | environment, capture_output=True)


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    name = os.fsencode(tmp_path) + b'/\xff\xe9.jpg'
    with open(name, 'wb') as file:
        file.write(PHOTOGRAPH.read_bytes())
    done = in_a_shell(f'igczoo classify {tmp_path} -k 1', PYTHONIOENCODING='ascii')
    assert done.returncode == 0 and b'sports car' in done.stdout and b'\\udcff\\udce9.jpg' in done.stdout
    found, = json.loads(in_a_shell(f'igczoo classify {tmp_path} -k 1 --json', PYTHONIOENCODING='ascii').stdout)
    assert os.fsencode(found['image']) == name


@pytest.mark.parametrize('command', [
    'igczoo list >&-', 'igczoo info igcnet18 2>&-', 'igczoo info nonesuch 2>&-', 'igczoo list >/dev/full'])
def test_a_closed_or_full_stream_is_an_error(command):
    done = in_a_shell(command)
    assert done.returncode == 1 and not done.stdout and b'Traceback' not in done.stderr


def test_a_reader_that_has_enough_ends_the_program_quietly():
    done = in_a_shell('igczoo info igcnet18 --json | head -c 1')
    assert done.returncode == 0 and done.stdout == b'{' and not done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--version'])
    assert stop.value.code == 0 and capsys.readouterr().out == f'igczoo {__version__}\n'


def test_classify_prints_a_table_or_json(capsys):
    status, out, err = run(capsys, 'classify', PHOTOGRAPH, '-k', 3)
    lines = out.splitlines()
    assert status == 0 and not err and len(lines) == 3
    assert lines[0].startswith(str(PHOTOGRAPH)) and lines[0].endswith('sports car')
    status, out, _ = run(capsys, 'classify', PHOTOGRAPH, '-k', 3, '--json')
    predictions = json.loads(out)[0]['predictions']
    assert [prediction['label'] for prediction in predictions] == [line.partition('%  ')[2] for line in lines]
    assert f'{predictions[0]["score"]:.2%}' in lines[0]


def test_what_is_found_is_printed_at_once(capsys, monkeypatch):
    whole = run(capsys, 'classify', PHOTOGRAPH, ROOT / 'README.md', 'no\u2028such.jpg', PHOTOGRAPH, '-k', 2, '--json')[1]
    assert json.loads(whole)[2]['image'] == 'no\u2028such.jpg'
    assert whole == json.dumps(json.loads(whole), indent=1, ensure_ascii=False) + '\n'
    each = Classifier.classify_each

    def slowly(*arguments):
        for number, pair in enumerate(each(*arguments)):
            if number == 2:
                seen.append(capsys.readouterr().out)
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(Classifier, 'classify_each', slowly)
    for switch, first in ((), 'sports car'), (('--json',), '[\n {\n  "image": '):
        seen = []
        assert run(capsys, 'classify', *[PHOTOGRAPH] * 3, *switch)[0] == 130
        assert first in seen[0] and seen[0].count('sports car') == 2 and not (switch and seen[0].endswith(']\n'))


def test_workers_and_exact(capsys, tmp_path):
    large = tmp_path / 'large.jpg'
    Image.open(PHOTOGRAPH).resize((1600, 1200)).save(large)
    found = {switches: run(capsys, 'classify', large, ROOT / 'examples', '-k', 1, '--json', '--model', CIFAR, *switches)
             for switches in ((), ('--workers', '0'), ('--workers', '3', '--batch-size', '2'), ('--exact',))}
    assert all(status == 0 and not err for status, _, err in found.values())
    outs = {switches: [one['predictions'][0]['score'] for one in json.loads(out)] for switches, (_, out, _) in found.items()}
    assert outs['--workers', '0'] == pytest.approx(outs[()], abs=1e-5) == outs['--workers', '3', '--batch-size', '2']
    assert abs(outs['--exact',][0] - outs[()][0]) > 1e-5


def test_the_examples_are_recognised_as_the_card_says(capsys):
    status, out, _ = run(capsys, 'classify', ROOT / 'examples', '-k', 1, '--json')
    found = {Path(result['image']).stem: result['predictions'][0]['label'] for result in json.loads(out)}
    wrong = {name for name, label in found.items() if label != {'lighthouse': 'beacon'}.get(name, name.replace('_', ' '))}
    assert status == 0 and len(found) == 8 and not wrong
    assert 'It gets all eight photographs in examples/ right' in cards()['igcnet18.tinyimagenet'].limits


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


@pytest.mark.parametrize('deployable', [True, False])
def test_classify_deploys_where_it_can(capsys, tmp_path, deployable):
    norm = dict(norm_layer='batchnorm2d' if deployable else 'groupnorm1')
    folder = tmp_path / 'net'
    timm.models.save_for_hf(timm.create_model('igc_resnet20_l4m8', **norm), str(folder), norm, safe_serialization=True)
    outputs = {}
    for switch in ((), ('--deploy',), ('--no-deploy',)):
        status, out, err = run(capsys, 'classify', *[PHOTOGRAPH] * 16, '--model', folder, '--json', *switch)
        assert status == (not deployable and switch == ('--deploy',))
        assert not err or err.startswith('igczoo classify: deploy: ')
        outputs[switch] = out and {prediction['label']: prediction['score'] for prediction in json.loads(out)[0]['predictions']}
    assert outputs[()] == pytest.approx(outputs['--no-deploy',], abs=1e-4)
    assert outputs[()] == outputs['--deploy' if deployable else '--no-deploy',]


def test_few_photographs_are_not_worth_deploying(capsys, monkeypatch):
    made = []
    monkeypatch.setattr('igczoo.inference.classifier.deployed', lambda model, **options: made.append(model) or model)
    for count in (15, 16):
        assert run(capsys, 'classify', *[PHOTOGRAPH] * count, '--model', CIFAR)[0] == 0 and len(made) == count - 15


def test_many_photographs_are_worth_compiling_for(monkeypatch):
    compiled = []
    monkeypatch.setattr('igczoo.inference.classifier.deployed', lambda model, build: compiled.append(build) or model)
    plain = load(CIFAR)
    for deploy, images in ((None, 4_999), (None, 5_000), (True, 1)):
        assert deployed_as_asked(plain, deploy, images) is not plain
    assert compiled == [False, True, True] and deployed_as_asked(plain, False, 5_000) is plain


def test_the_help_has_the_numbers_of_images_that_decide(capsys):
    for command in ('classify', 'batch'):
        with pytest.raises(SystemExit):
            main([command, '--help'])
        assert f'for {FEW} images and more, and compiled for it only for {MANY:,} and more' in ' '.join(capsys.readouterr().out.split())


def test_verify(capsys):
    status, out, _ = run(capsys, 'verify', CIFAR)
    assert status == 0 and out.startswith('ok ')
    status, out, _ = run(capsys, 'verify', '--all', '--json')
    assert status == 0 and all(copy['state'] == 'ok' for copy in json.loads(out))


def test_verify_reads_a_folder_of_ones_own(capsys, mine, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(mine, tmp_path / 'my_model'))
    weights = folder / 'model.safetensors'
    assert run(capsys, 'verify', folder)[:2] == (0, f'ok            {CIFAR}.my_model  folder  {weights}\n')
    monkeypatch.chdir(tmp_path)
    folder.rename(f'{CIFAR}.cifar10')       # a checkpoint's name means the checkpoint, as it does to load
    assert 'bundled' in run(capsys, 'verify', f'{CIFAR}.cifar10')[1] and 'bundled' in run(capsys, 'verify', '--all')[1]
    folder = Path(f'{CIFAR}.cifar10').rename(folder)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert run(capsys, 'verify', folder)[:2] == (1, f'wrong digest  {CIFAR}.my_model  folder  {weights}\n')
    weights.unlink()
    status, out, _ = run(capsys, 'verify', folder, '--json')
    assert status == 1 and [copy['state'] for copy in json.loads(out)] == ['absent']
    status, _, err = run(capsys, 'verify', tmp_path / 'nonesuch')
    assert status == 1 and err.startswith('igczoo verify: ') and err.count('\n') == 1


def test_evaluate_and_train(capsys, tmp_path):
    labels = cards()[f'{CIFAR}.cifar10'].labels
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in labels:
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for i in range(13):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    status, out, _ = run(capsys, 'evaluate', CIFAR, '--data', tmp_path / 'data', '--json')
    assert status == 0 and json.loads(out)['accuracy']['n'] == 130
    status, out, _ = run(capsys, 'evaluate', CIFAR, '--data', tmp_path / 'data')
    assert status == 0 and 'on data, 130 images: top-1 ' in out
    plain = re.search(r'top-1 [^,]*, top-5 [^,]*', out)[0]
    status, out, _ = run(capsys, 'evaluate', CIFAR, '--data', tmp_path / 'data', '--deploy')
    assert status == 0 and plain in out
    status, out, _ = run(capsys, 'train', 'cifar10_igc_resnet20_l24m2', '--data', tmp_path / 'data', '--out', tmp_path / 'run',
                         '--epochs', 2, '--device', 'cpu', '--minutes', 1e-9)
    assert status == 0 and out.endswith('after 1 of 2 epochs; give the command again to go on\n')
    status, out, _ = run(capsys, 'train', 'cifar10_igc_resnet20_l24m2', '--data', tmp_path / 'data', '--out', tmp_path / 'run',
                         '--epochs', 2, '--device', 'cpu')
    assert status == 0 and out.endswith('after 2 of 2 epochs\n') and (tmp_path / 'run' / 'model.safetensors').exists()


@pytest.fixture(scope='module')
def mine(tmp_path_factory) -> Path:
    """A folder of photographs, and beside it a checkpoint of one's own made from it by the command."""
    root, rng = tmp_path_factory.mktemp('own'), np.random.default_rng(0)
    for label, colour in dict(blue=(60, 60, 190), red=(190, 60, 60)).items():
        for i in range(8):
            for folder in (root / 'photos' / label, *[root / 'data' / 'val' / label] * (i < 3)):
                folder.mkdir(parents=True, exist_ok=True)
                noisy = np.clip(np.array(colour) + rng.normal(0, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f'{i}.png')
    assert main(['finetune', CIFAR, '--data', str(root / 'photos'), '-o', str(root / 'my_model'), '--epochs', '2']) == 0
    return root / 'my_model'


def test_finetune_says_what_came_of_it(capsys, mine):
    arguments = ('finetune', CIFAR, '--data', mine.parent / 'photos', '-o', mine, '--epochs', 2)    # finished: only loaded
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and 'photographs that it was not trained on' in out and f'igczoo classify --model {mine}' in out
    status, out, _ = run(capsys, *arguments, '--json')
    assert status == 0 and json.loads(out)['labels'] == ['blue', 'red']


def test_every_command_takes_a_folder_of_ones_own(capsys, mine, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'LEAST', 0.)
    monkeypatch.setattr(bench, 'find_spec', lambda name: None)
    photos, data = mine.parent / 'photos', mine.parent / 'data'

    def both(*arguments) -> tuple[str, dict]:
        """What is printed for people, and for programs."""
        (status, text, _), (json_status, found, _) = run(capsys, *arguments), run(capsys, *arguments, '--json')
        assert (status, json_status) == (0, 0)
        return text, json.loads(found)

    for name in (mine, f'local-dir:{mine}'):
        text, found = both('info', name)
        assert f'{CIFAR}.my_model' in text and 'folder  ok' in text and found['copies'][0]['state'] == 'ok'
    text, found = both('classify', '--model', mine, photos / 'red' / '0.png')
    assert 'red' in text.splitlines()[0] and found[0]['predictions'][0]['label'] == 'red'
    text, found = both('classify', '--model', mine, photos, '-k', 1)
    assert len(text.splitlines()) == len(found) == 16
    text, found = both('evaluate', mine, '--data', data, '--csv', tmp_path / 'p.csv', '--report', tmp_path / 'report')
    assert 'recall, %' in text and found['accuracy']['n'] == 6 and {one['label'] for one in found['classes']} == {'blue', 'red'}
    assert (tmp_path / 'p.csv').read_text().count('\n') == 7 and (tmp_path / 'report' / 'index.html').exists()
    text, found = both('evaluate', '--model', mine, '--data', data)
    assert found['confusion']['red']['red'] == 3
    text, found = both('explain', '--model', mine, photos / 'red' / '0.png', '-o', tmp_path / 'heat.png', '--label', 'blue')
    assert 'blue' in text and found['label'] == 'blue' and (tmp_path / 'heat.png').exists()
    for name in (mine, f'local-dir:{mine}'):
        text, found = both('publish', '--model', name, '--to', 'me')
        assert f'me/{CIFAR}.my_model: nothing is uploaded' in text and found['repo'] == f'me/{CIFAR}.my_model'
    text, found = both('bench', mine, '--rounds', 1, '--batch-size', 1)
    assert 'deployed' in text and found['timings']
    assert run(capsys, 'export', '--model', mine, '-o', tmp_path / 'x.pt2')[0] == 0 and (tmp_path / 'x.pt2').exists()


def test_a_trained_run_is_a_checkpoint_too(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in cards()[f'{CIFAR}.cifar10'].labels:
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for i in range(13):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    assert run(capsys, 'train', 'cifar10_igc_resnet20_l24m2', '--data', tmp_path / 'data', '--out', tmp_path / 'run', '--epochs', 1,
               '--device', 'cpu')[0] == 0
    status, out, _ = run(capsys, 'evaluate', tmp_path / 'run', '--data', tmp_path / 'data', '--json')
    assert status == 0
    assert json.loads(out)['accuracy']['top1'] == json.loads((tmp_path / 'run' / 'card.json').read_text())['accuracy'][0]['top1']


def test_export(capsys, tmp_path):
    status, out, err = run(capsys, 'export', CIFAR, '-o', tmp_path / 'x.pt2')
    assert status == 0 and not err and out.startswith(f"{tmp_path / 'x.pt2'}: its logits differ from PyTorch's by at most ")
    assert [path.name for path in tmp_path.iterdir()] == ['x.pt2']


def test_export_in_eight_bits(capsys, tmp_path, monkeypatch):
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(package)
    for split, label in itertools.product(('train', 'val'), ('red', 'blue')):
        (tmp_path / split / label).mkdir(parents=True)
        for i in range(4):
            Image.new('RGB', (40, 32), (split == 'val', label == 'red', i)).save(tmp_path / split / label / f'{i}.png')
    given = []

    def export_int8(classifier, path, *sets):
        given.extend(torch.cat(list(images)) for images in sets)
        return Quantized(500_000, 2_000_000, 4, 3)

    monkeypatch.setattr(quantize, 'export_int8', export_int8)
    status, out, _ = run(capsys, 'export', CIFAR, '-o', tmp_path / 'x.onnx', '--int8', '--data', tmp_path)
    assert status == 0 and out == (f'{tmp_path / "x.onnx"}: 0.5 MB, 2.0 MB in float32; of 4 photographs that it was not calibrated on, '
                                   '3 are called what float32 calls them\n')
    preprocess = load(CIFAR).preprocess
    colours = {tuple(preprocess(Image.new('RGB', (40, 32), (0, red, i)))[:, 0, 0].tolist()): (red, i) for red in (0, 1) for i in range(4)}
    calibrated, held_out = ([colours[tuple(image[:, 0, 0].tolist())] for image in images] for images in given)
    assert len(set(calibrated + held_out)) == 8
    assert sorted(red for red, _ in calibrated) == sorted(red for red, _ in held_out) == [0, 0, 1, 1]


def test_bench(capsys, monkeypatch):
    monkeypatch.setattr(bench, 'LEAST', 0.)
    monkeypatch.setattr(bench, 'find_spec', lambda name: None)      # of ONNX Runtime, which takes long to build
    arguments = ('bench', 'igc_regconv20_w16', '--size', 16, '--rounds', 2, '--batch-size', 1, 3, '--dtype', 'bfloat16')
    status, out, _ = run(capsys, *arguments)
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith(bench.host()) and lines[1] == '| model | form | bfloat16, batch 1 | bfloat16, batch 3 |'
    status, out, _ = run(capsys, *arguments, '--json')
    timings = json.loads(out)['timings']
    assert status == 0 and [(timing['form'], timing['batch_size']) for timing in timings] == [
        (form, n) for n in (1, 3) for form in ('plain, NCHW', 'plain, channels_last', 'deployed')]
    assert all(len(timing['seconds']) == 2 and timing['ratio'] > 0 for timing in timings)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['info', 'nonesuch'], "igczoo info: 'nonesuch' is no checkpoint; there are "),
    (['info', './none/such'], 'igczoo info: none/such/card.json: there is no such file; name a folder that igczoo finetune, train or '),
    (['explain', '--model', 'x.onnx', 'x.jpg', '-o', 'x.png'], 'igczoo explain: x.onnx: is taken by igczoo classify and igczoo evaluate'),
    (['classify', ''], "igczoo classify: '': is an empty name; give the path of an image file"),
    (['classify', 'nonesuch.jpg'], 'igczoo classify: nonesuch.jpg: there is no such file'),
    (['classify', 'x.jpg', '--model', 'nonesuch'], "igczoo classify: 'nonesuch' is no checkpoint; there are "),
    (['evaluate', CIFAR, '--data', 'nonesuch'], 'igczoo evaluate: nonesuch: found no evaluation images'),
    (['train', 'nonesuch', '--data', 'x'], "igczoo train: recipe 'nonesuch' is unknown; there are "),
    (['convert', 'x.params', '--model', 'nonesuch', '-o', 'x'], "igczoo convert: there is no conversion to 'nonesuch' from mxnet; "),
    (['convert', 'x.params', '--model', 'igcnet18', '-o', 'nonesuch'], 'igczoo convert: '),
    (['export', 'nonesuch', '-o', 'x.pt2'], "igczoo export: 'nonesuch' is no checkpoint; there are "),
    (['export', CIFAR, '-o', 'x.txt'], "igczoo export: x.txt: its suffix is '.txt'; it must be .onnx or .pt2"),
    (['export', CIFAR, '-o', 'x.pt2', '--int8', '--data', 'x'], "igczoo export: x.pt2: its suffix is '.pt2'; of int8 it must be .onnx"),
    (['export', CIFAR, '-o', 'x.onnx', '--int8', '--data', 'nonesuch'], 'igczoo export: nonesuch: is no folder, no CSV file'),
    (['export', CIFAR, '-o', 'nonesuch/x.pt2'], 'igczoo export: nonesuch/x.pt2: there is no folder nonesuch'),
    (['bench', 'nonesuch'], "igczoo bench: 'nonesuch' is no model that timm knows; of this package there are "),
    (['bench', 'igcnet18', '--device', 'nonesuch'], "igczoo bench: device is 'nonesuch', which cannot be used here"),
])
def test_a_mistake_is_one_line_and_status_1(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 1 and not out and err.startswith(message) and err.count('\n') == 1


def test_evaluate_refuses_where_it_cannot_write_before_it_measures(capsys, mine, tmp_path):
    arguments = ('evaluate', mine, '--data', mine.parent / 'data')
    for option, where, message in (('--csv', tmp_path / 'nonesuch' / 'a.csv', 'there is no folder'), ('--csv', tmp_path, 'is a folder'),
                                   ('--report', mine, 'is a checkpoint, with pictures of its own')):
        status, out, err = run(capsys, *arguments, option, where)
        assert status == 1 and not out and message in err and err.count('\n') == 1


def test_classify_writes_tables_and_pictures(capsys, tmp_path):
    (tmp_path / 'damaged.jpg').write_bytes(b'no image')
    given = [str(PHOTOGRAPH), str(tmp_path / 'damaged.jpg')]
    assert main(['classify', *given, '-k', '2', '--csv', str(tmp_path / 'a.csv'), '--jsonl', '-', '--save', str(tmp_path / 'out')]) == 1
    out = capsys.readouterr().out
    first, second = map(json.loads, out.splitlines())       # and no table
    assert (first['predictions'][0]['label'] == 'sports car' and 'no image' in second['error']) or 'damaged.jpg' in second['error']
    rows = (tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines()
    assert rows[0] == 'image,error,label,score,label_2,score_2' and ',sports car,0.87' in rows[1] and len(rows) == 3
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['00001_sports_car.jpg', 'contact_sheet_001.jpg']
    assert main(['classify', given[0], '--csv', str(tmp_path / 'a.csv'), '--save', str(tmp_path / 'out')]) == 1
    assert 'is there already' in capsys.readouterr().err and (tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines() == rows
    assert main(['classify', given[0], '-k', '1', '--csv', '-']) == 0
    assert capsys.readouterr().out.splitlines()[0] == 'image,error,label,score'


@pytest.mark.parametrize('arguments', [
    [], ['nonesuch'], ['classify'], ['classify', 'x.jpg', '--json', '--csv', '-'], ['classify', 'x.jpg', '--csv', 'x', '--jsonl', 'x'],
    ['classify', 'x.jpg', '--csv', 'x', '--jsonl', './x'], ['demo', '--port', '70000'],
    ['classify', 'x.jpg', '-k', '0'], ['classify', 'x.jpg', '--workers', '-1'],
    ['verify'], ['evaluate', 'x'], ['export', 'x'],
    ['evaluate', '--data', 'x'], ['bench'], ['bench', 'x', '--model', 'x'], ['finetune', 'x', '--data', 'x'],
    ['finetune', 'x', '--data', 'x', '-o', 'x', '--minutes', '0'], ['export', 'x', '-o', 'x.onnx', '--int8'],
    ['export', 'x', '-o', 'x.onnx', '--data', 'x'],
    ['batch', 'photos'], ['batch', 'photos', '-o', 'out', '--workers', '0'],
    ['bench', 'igcnet18', '--dtype', 'int8']])
def test_a_wrong_call_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and 'usage: igczoo' in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    for command in ('list', 'info', 'classify', 'batch', 'explain', 'verify', 'evaluate', 'finetune', 'train', 'export', 'bench', 'convert',
                    'publish'):
        with pytest.raises(SystemExit) as stop:
            main([command, '--help'])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and f'usage: igczoo {command}' in out and f'examples:\n  igczoo {command}' in out


def test_a_process_ends_with_the_status_and_no_traceback():
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    result = subprocess.run([sys.executable, '-m', 'igczoo.cli', 'info', 'nonesuch'], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
