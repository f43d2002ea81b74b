"""benchmarks/gpu.py without a GPU: folders in pieces, and a visit that trains for an epoch at a time. No test looks at how long it took."""
import hashlib
import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from igczoo.training.recipes import Recipe

pytest.importorskip('tomllib', reason='the benchmark needs Python 3.11')

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
RECIPE = Recipe(
    model='igc_resnet20_l24m2', num_classes=2, input_size=8, mean=(120., 110., 100.), std=(60., 60., 60.), epochs=2, batch_size=16, lr=.1,
    warmup_epochs=.5, momentum=.9, weight_decay=1e-3, label_smoothing=.1, crop_padding=2, flip=True)


@pytest.fixture
def scripts(monkeypatch, tmp_path) -> SimpleNamespace:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu
    import pieces
    monkeypatch.setattr(gpu, 'WORK', tmp_path / 'work')
    return SimpleNamespace(gpu=gpu, pieces=pieces)


@pytest.fixture
def folder(tmp_path) -> Path:
    """2.5 MiB of noise in two files, and an empty one."""
    folder, rng = tmp_path / 'set-of-images', np.random.default_rng(0)
    (folder / 'train').mkdir(parents=True)
    (folder / 'train' / 'a.bin').write_bytes(rng.bytes(2 << 20))
    (folder / 'b.bin').write_bytes(rng.bytes(1 << 19))
    (folder / 'empty').touch()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_folder_split_and_joined_again_is_the_same(scripts, folder, tmp_path):
    count = scripts.pieces.split(folder, tmp_path / 'pieces', 1)
    found = content(tmp_path / 'pieces')
    lines = found.pop('SHA256SUMS').decode().splitlines()
    assert count == 3 and sorted(found) == [f'set-of-images.tar.{number:02}' for number in range(3)]
    assert max(map(len, found.values())) == 1 << 20
    parts = {'set-of-images.tar': b''.join(found[name] for name in sorted(found))} | found
    assert {tuple(line.split('  ')) for line in lines} == {(hashlib.sha256(part).hexdigest(), name) for name, part in parts.items()}
    scripts.pieces.join(tmp_path / 'pieces', tmp_path / 'again')
    assert content(tmp_path / 'again') == content(folder) and len(content(folder)) == 3


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(('harm', 'message'), [
    (lambda pieces: damage(pieces / 'set-of-images.tar.01'), 'set-of-images.tar.01: sha256 '),
    (lambda pieces: (pieces / 'set-of-images.tar.02').unlink(), 'set-of-images.tar.02: is missing, SHA256SUMS has it; bring it too'),
    (lambda pieces: (pieces / 'SHA256SUMS').unlink(), 'pieces: has no SHA256SUMS; give a folder of pieces'),
    (lambda pieces: (pieces / 'SHA256SUMS').write_text('nonsense\n'), 'SHA256SUMS: is no list of digests and names; bring it again'),
    (lambda pieces: (pieces / 'SHA256SUMS').write_text(''), 'SHA256SUMS: is no list of digests and names; bring it again'),
    (lambda pieces: (pieces / 'SHA256SUMS').write_text(''.join((pieces / 'SHA256SUMS').read_text().splitlines(True)[:-1])),
     'SHA256SUMS: its 2 pieces are not the whole of set-of-images.tar; bring it again'),
    (lambda pieces: (pieces.parent / 'again').mkdir(), 'again: is there already; name a folder that is not')],
    ids=['damaged', 'missing', 'no list', 'no digests', 'empty list', 'short list', 'folder there'])
def test_pieces_that_are_not_whole_are_one_line_and_nothing_is_written(scripts, folder, tmp_path, monkeypatch, capsys, harm, message):
    scripts.pieces.split(folder, tmp_path / 'pieces', 1)
    harm(tmp_path / 'pieces')
    before = content(tmp_path), sorted(tmp_path.rglob('*'))
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--join', str(tmp_path / 'pieces'), str(tmp_path / 'again')])
    with pytest.raises(SystemExit) as caught:
        scripts.gpu.main()
    text = str(caught.value)
    assert text.startswith(f'gpu.py: {tmp_path}') and message in text and '\n' not in text
    assert (content(tmp_path), sorted(tmp_path.rglob('*'))) == before


def test_a_split_that_breaks_off_leaves_nothing(scripts, folder, tmp_path, monkeypatch):
    written, write_bytes = [], Path.write_bytes

    def write_one(path, data):
        if written:
            raise OSError('the disk is full')
        written.append(write_bytes(path, data))

    monkeypatch.setattr(Path, 'write_bytes', write_one)
    with pytest.raises(OSError, match='the disk is full'):
        scripts.pieces.split(folder, tmp_path / 'pieces', 1)
    assert written == [1 << 20] and [path.name for path in tmp_path.iterdir()] == ['set-of-images']


def test_a_visit_trains_to_the_last_whole_epoch_and_the_next_goes_on(scripts, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split, label, count in (('train', 'a', 8), ('train', 'b', 8), ('test', 'a', 2), ('test', 'b', 2)):
        (tmp_path / 'noise' / split / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / 'noise' / split / label / f'{number}.png')
    scripts.pieces.split(tmp_path / 'noise', tmp_path / 'pieces', 1)
    monkeypatch.setattr('igczoo.training.recipes.find_recipe', lambda name: RECIPE)
    monkeypatch.setattr(scripts.gpu, 'missing', list)
    monkeypatch.setattr(scripts.gpu, 'GRACE', 600)      # no second is left for training, and many for an epoch
    for epochs in (1, 2):
        out = tmp_path / f'out{epochs}'
        monkeypatch.setattr(sys, 'argv', [
            'gpu.py', '--out', str(out), '--data', str(tmp_path / 'pieces'), '--recipe', 'tiny', '--device', 'cpu',
            '--minutes', str((600 + scripts.gpu.PACKING) / 60), '--tests', '0', '--inference', '0', '--steps', '0'])
        scripts.gpu.main()
        assert f'training: as written, channels_last: {epochs} of 2 epochs\n' in capsys.readouterr().out
        report = (out / 'report.md').read_text()
        assert f' | as written, channels_last: {epochs} of 2 epochs |' in report and torch.__version__ in report
        assert f'\n| {epochs} | 8 | ' in report and f'\n| {epochs + 1} | 8 | ' not in report
        scripts.pieces.join(out / 'run', tmp_path / f'home{epochs}')
        assert content(tmp_path / f'home{epochs}') == content(tmp_path / 'work' / 'tiny')
        assert len(torch.load(tmp_path / f'home{epochs}' / 'checkpoint.pt', weights_only=True)['log']) == epochs
    assert not (tmp_path / 'home1' / 'card.json').exists() and 'on noise' in (tmp_path / 'home2' / 'card.json').read_text()
    assert {path.name for path in out.rglob('*') if path.is_file()} == {'report.md', 'SHA256SUMS', 'tiny.tar.00'}

    said = tmp_path / 'work' / 'tiny' / 'teacher-0123.npy'
    said.write_bytes(bytes(1 << 20))
    scripts.gpu.pack(said.parent, tmp_path / 'taught')
    scripts.pieces.join(tmp_path / 'taught', tmp_path / 'home4')
    assert content(tmp_path / 'home4') == content(tmp_path / 'home2')
    said.unlink()

    monkeypatch.setattr(scripts.gpu, 'RUN_MIB', 0)
    assert 'without checkpoint.pt, for which there is no room' in scripts.gpu.pack(tmp_path / 'work' / 'tiny', tmp_path / 'small')
    scripts.pieces.join(tmp_path / 'small', tmp_path / 'home3')
    assert content(tmp_path / 'home3').keys() == content(tmp_path / 'home2').keys() - {'checkpoint.pt'}


def test_a_training_process_that_takes_too_long_or_fails_is_said_so(scripts, tmp_path):
    common = RECIPE, tmp_path / 'nonesuch', tmp_path / 'run', 'cpu', 'as written, channels_last', 0.
    assert scripts.gpu.train_for(*common, 0.) == '0 of 2 epochs, stopped within one'
    assert scripts.gpu.train_for(*common, 600.) == '0 of 2 epochs, ended with 1'
    assert scripts.gpu.pack(tmp_path / 'run', tmp_path / 'out') == 'No epoch is whole; there is nothing to bring home.\n'


def test_a_part_is_ended_when_its_time_is_over(scripts):
    assert scripts.gpu.run(['-c', 'print(1); import time; time.sleep(600)'], .1) == ('not done in time', '')
    assert scripts.gpu.run(['-c', 'print(1)'], 600) == ('ok', '1\n')
    assert scripts.gpu.run(['-c', 'print(1); raise ValueError("x")'], 600) == ('ended with 1: ValueError: x', '1\n')


def test_what_is_missing(scripts, monkeypatch, tmp_path):
    assert scripts.gpu.missing() == []
    monkeypatch.setattr(scripts.gpu, 'version', lambda name: '1.0.20' if name == 'timm' else importlib.metadata.version(name))
    assert scripts.gpu.missing() == ['timm>=1.0.31']
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit, match=r'^gpu.py: this machine lacks timm>=1.0.31; bring wheels, or set the path$'):
        scripts.gpu.main()
    assert not (tmp_path / 'out').exists()


def test_steps_are_compared_with_the_net_as_written_in_the_same_type(scripts):
    rows = [dict(model='igcnet18', form=form, dtype=dtype, seconds=seconds) for form, dtype, seconds in (
        ('as written, channels_last', 'fp32', [1., 2., 4.]), ('as written, channels_last', 'bf16', [.5, .5, .5]),
        ('planar, by torch alone', 'bf16', [.25, .125, .25]))]
    assert scripts.gpu.steps_table(rows, 128).splitlines()[2:] == [
        '| igcnet18 | as written, channels_last | fp32 | 64 (32 to 128) | 1.00x |',
        '| igcnet18 | as written, channels_last | bf16 | 256 (256 to 256) | 1.00x |',
        '| igcnet18 | planar, by torch alone | bf16 | 512 (512 to 1,024) | 2.00x |']
    assert scripts.gpu.steps_table([], 128) == ''


def test_the_fastest_form_measured_is_trained_in(scripts, monkeypatch):
    seconds = {'as written, channels_last': 4., 'planar, by torch alone': 2., 'planar, by torch alone, compiled': 1., 'by kernels': .5}
    calls = []

    def run(command, limit):
        calls.append(command)
        forms = [form for form in seconds if 'compiled' not in form or '--compile' in command]
        return 'ok', scripts.gpu.json.dumps([
            dict(model=model, form=form, dtype='bf16', seconds=[seconds[form] / (10 if model == 'resnet18' else 1)])
            for model in ('igcnet18', 'resnet18') for form in forms])

    monkeypatch.setattr(scripts.gpu, 'run', run)
    arguments = SimpleNamespace(recipe='tinyimagenet_igcnet18', batch_size=4, device='cpu', rounds=1, form=None)
    assert scripts.gpu.run_steps(arguments, 600)[0] == '6 of 6 measurements' and len(calls) == 6
    assert arguments.form == 'planar, by torch alone, compiled'
    arguments.form = 'as written, channels_last'
    scripts.gpu.run_steps(arguments, 600)
    assert arguments.form == 'as written, channels_last'
