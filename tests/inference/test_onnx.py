"""Labels by ONNX Runtime: equal to those by PyTorch, without importing it, and refused where the file is not as it should be."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from timm.data import create_transform

import igczoo
from igczoo.cli import main
from igczoo.deployment.export import metadata
from igczoo.files import is_intact
from igczoo.inference.onnx import OnnxClassifier, Preprocessing, cached_export
from igczoo.inference.photograph import Fit, ImageError, find_images

ROOT = Path(__file__).parents[2]
EXAMPLES = find_images(ROOT / 'examples')
CHECKPOINT = 'igc_resnet20_l24m2'


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def exported(cache) -> Path:
    return cached_export(CHECKPOINT)


@pytest.fixture(scope='module')
def classifier(exported) -> OnnxClassifier:
    return OnnxClassifier(exported)


@pytest.fixture
def quick_export(exported, monkeypatch) -> list[Path]:
    """In place of an export, which takes many seconds: the one there is, with the metadata of the classifier."""
    made = []

    def export(classifier, path):
        model = onnx.load(exported)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata(classifier).items()})
        onnx.save(model, path)
        made.append(path)

    monkeypatch.setattr('igczoo.deployment.export.export', export)
    return made


# Parity

@pytest.mark.parametrize('size', [(40, 40), (41, 60), (333, 251), (250, 1001), (96, 128)])
@pytest.mark.parametrize('options', [
    dict(interpolation='bilinear', crop_pct=1.), dict(interpolation='bicubic', crop_pct=.875), dict(interpolation='lanczos', crop_pct=.95)])
@pytest.mark.parametrize('side', [32, 97])
def test_preprocessing_equals_timms_in_every_bit(size, options, side):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    facts = dict(input_size=(3, side, side), mean=(.4802, .4481, .3975), std=(.2764, .2689, .2816), **options)
    expected = create_transform(**facts, crop_mode='center', is_training=False)(image).numpy()
    found = Preprocessing(**facts, crop_mode='center')(image)
    assert found.dtype == np.float32 and expected.std() > .1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', ['igcnet18', CHECKPOINT])
def test_photographs_are_called_what_pytorch_calls_them(name):
    torches, onnxes = igczoo.load(name), OnnxClassifier(cached_export(name))
    assert (onnxes.labels, onnxes.fit) == (torches.labels, torches.fit)
    for found, expected in zip(onnxes.classify(EXAMPLES, k=10), torches.classify(EXAMPLES, k=10), strict=True):
        assert [(p.label, p.index) for p in found] == [(p.label, p.index) for p in expected]
        np.testing.assert_allclose([p.score for p in found], [p.score for p in expected], rtol=0, atol=1e-4)


def test_threads_batches_and_bad_files(classifier, tmp_path):
    (tmp_path / 'bad.jpg').write_text('no photograph')
    files = [*EXAMPLES, tmp_path / 'bad.jpg', *EXAMPLES]
    one_by_one = [(file, classifier.classify(file)) for file in EXAMPLES]
    for options in (dict(workers=0), dict(workers=3, batch_size=2), dict(batch_size=32)):
        pairs = list(classifier.classify_each(files, **options))
        assert [file for file, _ in pairs] == files and isinstance(pairs[8][1], ImageError)
        for (file, found), (_, expected) in zip((*pairs[:8], *pairs[9:]), one_by_one * 2, strict=True):
            assert [p.label for p in found] == [p.label for p in expected], file


def test_exact_decodes_every_pixel(exported):
    assert OnnxClassifier(exported).fit == Fit(32, Image.Resampling.BILINEAR) and OnnxClassifier(exported, exact=True).fit is None


# The command line

def test_the_command_line_says_the_same_and_imports_no_torch(exported):
    code = ('import sys\nfrom igczoo.cli import main\n'
            f'status = main(["classify", "--engine", "onnx", "--model", {CHECKPOINT!r}, *sys.argv[1:]])\n'
            'print(status, sorted({"torch", "torchvision", "timm"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code, *map(str, EXAMPLES)], capture_output=True, text=True)
    assert done.stderr == '' and done.stdout.endswith('0 []\n')
    labels = [line.split('  ')[-1] for line in done.stdout.splitlines()[:-1]]
    expected = igczoo.load(CHECKPOINT).classify(EXAMPLES)
    assert labels == [p.label for predictions in expected for p in predictions]


def test_a_file_is_a_model(exported, tmp_path, capsys):
    (tmp_path / 'my.onnx').write_bytes(exported.read_bytes())
    assert main(['classify', '--model', str(tmp_path / 'my.onnx'), str(EXAMPLES[0]), '--json', '-k', '1']) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found['predictions'][0]['label'] == igczoo.load(CHECKPOINT).classify(EXAMPLES[0])[0].label


def test_the_first_call_says_that_it_exports(quick_export, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    call = ['classify', '--engine', 'onnx', '--model', CHECKPOINT, str(EXAMPLES[0])]
    assert main(call) == 0
    assert capsys.readouterr().err == f'igczoo classify: exporting {CHECKPOINT} for ONNX Runtime, once\n'
    assert main(call) == 0 and capsys.readouterr().err == '' and len(quick_export) == 1


@pytest.mark.parametrize('more', [['--device', 'cuda'], ['--no-deploy']])
@pytest.mark.parametrize('call', [['classify', '--engine', 'onnx', str(EXAMPLES[0])], ['evaluate', 'my.onnx', '--data', 'photos']])
def test_what_the_engine_does_not_do(call, more, capsys):
    with pytest.raises(SystemExit, match='2'):
        main([*call, *more])
    assert 'on the CPU' in capsys.readouterr().err


# What is kept, and what is wrong

def test_a_damaged_file_of_the_cache_is_made_again(quick_export, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    made = cached_export(CHECKPOINT)
    whole = made.read_bytes()
    made.write_bytes(whole[:-1000])
    (made.parent / f'.{made.name}.1234.part').write_bytes(b'of a process that was killed')
    assert not is_intact(made) and cached_export(CHECKPOINT) == made and is_intact(made)
    assert made.read_bytes() == whole and len(quick_export) == 2 and not list(made.parent.glob('.*.part'))


def test_other_weights_are_another_file(exported, quick_export, tmp_path):
    folder = ROOT / 'weights' / f'{CHECKPOINT}.cifar10'
    copied = tmp_path / 'mine'
    copied.mkdir()
    for name in ('config.json', 'model.safetensors'):
        (copied / name).write_bytes((folder / name).read_bytes())
    first = cached_export(str(copied))
    assert first != exported and cached_export(str(copied)) == first
    config = json.loads((copied / 'config.json').read_text())
    config['label_names'] = [name.upper() for name in config['label_names']]
    (copied / 'config.json').write_text(json.dumps(config))
    second = cached_export(str(copied))
    assert second != first and OnnxClassifier(second).labels == tuple(name.upper() for name in OnnxClassifier(first).labels)


@pytest.mark.skipif(sys.platform == 'win32', reason='modes are of POSIX')
def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / 'igczoo').write_text('no folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(RuntimeError, match=r'onnx: cannot be written \(.+\); set XDG_CACHE_HOME to another folder, or igczoo export'):
        cached_export(CHECKPOINT)


def test_names_that_are_none():
    with pytest.raises(ValueError, match="'igcnet81' is no checkpoint; did you mean"):
        cached_export('igcnet81')
    with pytest.raises(ValueError, match='nowhere/at_all: there is no such folder'):
        cached_export('nowhere/at_all')
    with pytest.raises(ValueError, match='hf-hub:me/it: is on the hub; igczoo export'):
        cached_export('hf-hub:me/it')


def test_onnxruntime_is_missing(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(RuntimeError, match=r"onnxruntime is missing; pip install 'igczoo\[export\]'"):
        OnnxClassifier(exported)
    monkeypatch.setattr('igczoo.inference.onnx.is_intact', lambda path: False)
    with pytest.raises(RuntimeError, match=r"^onnxruntime is missing; pip install 'igczoo\[export\]'$"):
        cached_export(CHECKPOINT, lambda: pytest.fail('it begins to export'))


@pytest.mark.parametrize('change, found', [
    (dict(labels=None), 'its metadata has no labels'),
    (dict(mean=None), 'its metadata has no mean'),
    (dict(labels=['one', 'two']), r"for an input of \[3, 32, 32\] and 2 labels"),
    (dict(input_size=[3, 64, 64]), r"for an input of \[3, 64, 64\]"),
    (dict(input_size=[3, 32, 64]), 'it must be square'),
    (dict(crop_mode='squash'), "crop of mode squash"),
    (dict(interpolation='random'), 'by random'),
    (dict(interpolation=7), 'is not as igczoo export writes it'),
    (dict(crop_pct=0), 'is not as igczoo export writes it'),
])
def test_metadata_that_would_give_wrong_labels(exported, tmp_path, change, found):
    model = onnx.load(exported)
    facts = {prop.key: prop.value for prop in model.metadata_props} | {key: json.dumps(value) for key, value in change.items()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: value for key, value in facts.items() if value != 'null'})
    onnx.save(model, tmp_path / 'it.onnx')
    with pytest.raises(ValueError, match=found) as error:
        OnnxClassifier(tmp_path / 'it.onnx')
    assert '\n' not in str(error.value) and str(error.value).startswith(str(tmp_path / 'it.onnx'))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(ValueError, match='there is no such file; igczoo export makes one'):
        OnnxClassifier(tmp_path / 'it.onnx')
    (tmp_path / 'it.onnx').write_bytes(b'no model')
    with pytest.raises(ValueError, match='is no ONNX model that can be run') as error:
        OnnxClassifier(tmp_path / 'it.onnx')
    assert '\n' not in str(error.value)


def test_scores_that_are_no_numbers(exported, tmp_path):
    model = onnx.load(exported)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.inf, np.float32), bias.name))
    onnx.save(model, tmp_path / 'it.onnx')
    with pytest.raises(ImageError, match=r'the model gives .+ for it, which is no score'):
        OnnxClassifier(tmp_path / 'it.onnx').classify(EXAMPLES[0])


def test_a_file_is_evaluated_as_its_checkpoint_is(exported, tmp_path, capsys):
    for number, file in enumerate(EXAMPLES):
        folder = tmp_path / 'test' / ('automobile', 'frog')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / 'my.onnx').write_bytes(exported.read_bytes())
    found = []
    for model in (str(tmp_path / 'my.onnx'), CHECKPOINT):
        assert main(['evaluate', model, '--data', str(tmp_path), '--json']) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]['confusion'] == found[1]['confusion'] and found[0]['accuracy'] == found[1]['accuracy']
    assert found[0]['calibration_error'] == pytest.approx(found[1]['calibration_error'], abs=.05)
