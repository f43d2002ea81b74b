"""From a folder with a checkpoint to labels and scores: the same numbers as a computation by hand, and one clear line for every mistake."""
import copy
import io
import itertools
import json
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, create_transform
from torchvision.transforms import CenterCrop, Compose

from igczoo.checkpoints.card import CardError, cards, weights_folder
from igczoo.inference import photograph
from igczoo.inference.ahead import ahead
from igczoo.inference.classifier import Classifier, Prediction, load
from igczoo.inference.photograph import Fit, ImageError, find_images, open_image
from igczoo.nets.igcnet import igc_resnet

EXAMPLES = sorted((Path(__file__).parents[2] / 'examples').glob('*.jpg'))
LABELS = ('aeroplane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'lorry')
MEAN, STD = (.5, .4, .3), (.2, .25, .3)


def random_net(**kwargs) -> torch.nn.Module:
    """A net of random weights whose statistics fit its input, so that its answers differ from class to class and from image to image."""
    torch.manual_seed(0)
    net = timm.create_model('igc_resnet20_l24m2', **kwargs)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None      # the running statistics become those of the next batch
            torch.nn.init.uniform_(module.weight, .5, 1.5)
            torch.nn.init.uniform_(module.bias, -.5, .5)
    with torch.no_grad():
        net(torch.randn(32, 3, 32, 32))
    torch.nn.init.normal_(net.head.weight, std=.1)
    return net.eval()


def save(net: torch.nn.Module, folder: Path, **model_config) -> Path:
    timm.models.save_for_hf(net, str(folder), model_config=model_config, safe_serialization=True)
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config['pretrained_cfg'] |= {'mean': MEAN, 'std': STD, 'crop_pct': .875, 'interpolation': 'bilinear'}
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    return save(random_net(), tmp_path_factory.mktemp('checkpoints') / 'birds', label_names=LABELS)


@pytest.fixture(scope='module')
def classifier(checkpoint) -> Classifier:
    return load(checkpoint)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of three photographs, two files that are none and a note; a sub-folder holds one of the photographs."""
    (tmp_path / 'more').mkdir()
    for source, target in zip(EXAMPLES, ('a.jpg', 'c.jpg', 'more/d.jpg'), strict=False):
        (tmp_path / target).write_bytes(source.read_bytes())
    (tmp_path / 'b.jpg').write_text('no photograph')
    (tmp_path / 'e.jpg').write_bytes(EXAMPLES[0].read_bytes()[:5000])
    (tmp_path / 'note.txt').write_text('five photographs')
    return tmp_path


def assert_close(found: list[Prediction], expected: list[Prediction], tolerance: float = 1e-5) -> None:
    assert [(p.label, p.index) for p in found] == [(p.label, p.index) for p in expected]
    np.testing.assert_allclose([p.score for p in found], [p.score for p in expected], rtol=0, atol=tolerance)


# Parity

def test_predictions_equal_a_computation_by_hand(checkpoint):
    """Resize the short side to 32 / 0.875 = 36 pixels, crop 32 x 32 at the centre, normalise, forward, softmax."""
    photo = Image.open(EXAMPLES[0]).crop((10, 20, 290, 200))
    width, height = photo.size
    assert width > height
    resized = np.asarray(photo.resize((36 * width // height, 36), Image.Resampling.BILINEAR), np.float64) / 255
    left = round((resized.shape[1] - 32) / 2)
    x = (resized[2:34, left:left + 32] - MEAN) / STD
    net = igc_resnet(20, 24, 2, dtype=torch.float64).eval()
    net.load_state_dict({name: tensor.double() if tensor.is_floating_point() else tensor
                         for name, tensor in load_file(checkpoint / 'model.safetensors').items()})
    with torch.no_grad():
        logits = net(torch.from_numpy(x.transpose(2, 0, 1))[None])[0].numpy()
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    expected = [Prediction(LABELS[i], scores[i], int(i)) for i in np.argsort(-scores)]
    assert expected[0].score - expected[-1].score > .05

    assert_close(load(checkpoint, dtype=torch.float64).classify(photo, k=10), expected, 1e-6)
    assert_close(load(checkpoint).classify(photo, k=3), expected[:3], 1e-5)


def test_embedding_is_what_the_classifier_sees(classifier):
    seen = []
    handle = classifier.model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    classifier.classify(EXAMPLES[:3], workers=0)
    handle.remove()
    features = classifier.embed(EXAMPLES[:3])
    assert (features.shape, features.dtype, features.device.type) == ((3, classifier.model.num_features), torch.float32, 'cpu')
    torch.testing.assert_close(features, seen[0])
    assert features.std(0).max() > 1e-3
    torch.testing.assert_close(classifier.embed(EXAMPLES[1]), features[1:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(classifier.embed(EXAMPLES[:3], batch_size=2), features, rtol=0, atol=1e-5)


def test_batches_equal_one_by_one(classifier):
    sources = [EXAMPLES[0], str(EXAMPLES[1]), EXAMPLES[2].read_bytes(), Image.open(EXAMPLES[3]), np.asarray(Image.open(EXAMPLES[4]))]
    single = [classifier.classify(source, k=10) for source in sources]
    assert len({tuple(p.score for p in predictions) for predictions in single}) == len(sources)
    for images in (sources, tuple(sources)):
        for batch_size in (1, 2, 32):
            for found, expected in zip(classifier.classify(images, k=10, batch_size=batch_size), single, strict=True):
                assert_close(found, expected)
    assert classifier.classify(sources, k=10) == classifier.classify(sources, k=10)


def test_the_deployed_form_gives_the_same(checkpoint, classifier):
    deployed = load(checkpoint, deploy=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.network.modules())
    assert deployed.model.state_dict().keys() == classifier.model.state_dict().keys() and classifier.network is classifier.model
    for found, expected in zip(deployed.classify(EXAMPLES, k=10), classifier.classify(EXAMPLES, k=10), strict=True):
        assert_close(found, expected)
    torch.testing.assert_close(deployed.embed(EXAMPLES), classifier.embed(EXAMPLES), rtol=1e-5, atol=1e-5)
    assert (deployed.device, deployed.dtype, deployed.labels) == (classifier.device, classifier.dtype, classifier.labels)


def test_the_deployed_form_keeps_the_weights_it_was_made_of(checkpoint):
    deployed = load(checkpoint, deploy=True)
    expected = deployed.classify(EXAMPLES[0])
    torch.nn.init.zeros_(deployed.model.train().head.weight)
    assert deployed.classify(EXAMPLES[0]) == expected
    again = Classifier(deployed.model, deployed.preprocess, deployed.labels, deploy=True)
    assert {p.score for p in again.classify(EXAMPLES[0])} != {p.score for p in expected}


def test_a_model_without_a_deployed_form(tmp_path):
    folder = save(random_net(norm_layer='groupnorm1'), tmp_path / 'other', norm_layer='groupnorm1')
    with pytest.raises(ValueError, match=r'^deploy: .* must be BatchNorm2d'):
        load(folder, deploy=True)
    assert len(load(folder).classify(EXAMPLES[0])) == 5


# Photographs larger than needed

@pytest.mark.parametrize('options, fit', [
    ({}, Fit(224)), (dict(crop_pct=.875), Fit(256)), (dict(interpolation='bicubic'), Fit(224, Image.Resampling.BICUBIC)),
    (dict(crop_mode='squash'), None), (dict(crop_mode='border'), None)])
def test_photographs_are_opened_for_the_size_they_are_resized_to(options, fit):
    defaults, net = dict(input_size=(3, 224, 224), crop_pct=1., interpolation='bilinear', is_training=False), igc_resnet(8, 4, 2)
    transform = create_transform(**defaults | options)
    assert Classifier(net, transform, LABELS).fit == fit
    assert Classifier(net, transform, LABELS, exact=True).fit is None
    assert Classifier(net, lambda image: transform(image), LABELS).fit is None      # which may look at every pixel
    assert Classifier(net, Compose([CenterCrop(224), *transform.transforms]), LABELS).fit is None


def test_large_photographs_score_as_if_every_pixel_were_decoded():
    classifier, grain = load('igcnet18'), np.random.default_rng(0)
    exact = Classifier(classifier.model, classifier.preprocess, classifier.labels, exact=True)
    for example, size in zip(EXAMPLES[2:6], ((1600, 1200), (1200, 1600), (1300, 1200), (1540, 1540)), strict=True):
        enlarged = np.asarray(Image.open(example).convert('RGB').resize(size, Image.Resampling.LANCZOS))
        large, file = enlarged + grain.normal(0, 4, (*enlarged.shape[:2], 1)), io.BytesIO()
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
        found, expected = ({p.index: p.score for p in c.classify(file.getvalue(), k=200)} for c in (classifier, exact))
        assert found != expected and found == pytest.approx(expected, abs=.02)
        assert exact.classify(file.getvalue()) == classifier.classify(Image.open(file))


# What is returned

def test_one_image(classifier):
    predictions = classifier.classify(str(EXAMPLES[0]))
    assert [type(p) for p in predictions] == [Prediction] * 5
    assert all(p.label == LABELS[p.index] and type(p.score) is float and type(p.index) is int for p in predictions)
    assert sorted(predictions, key=lambda p: -p.score) == predictions
    assert sum(p.score for p in classifier.classify(EXAMPLES[0], k=10)) == pytest.approx(1, abs=1e-5)


def test_k(classifier):
    assert [len(classifier.classify(EXAMPLES[0], k=k)) for k in (1, 10, 11, 1000)] == [1, 10, 10, 10]


def test_empty_list(classifier):
    assert classifier.classify([]) == classifier.classify(()) == list(classifier.classify_each([])) == []
    assert classifier.embed([]).shape == (0, classifier.model.num_features)


def test_folder(classifier, photos):
    (photos / 'b.jpg').unlink()
    (photos / 'e.jpg').unlink()
    files = [photos / name for name in ('a.jpg', 'c.jpg', 'more/d.jpg')]
    assert find_images(photos) == files
    for folder in (photos, str(photos)):
        assert classifier.classify(folder) == classifier.classify(files)
    assert dict(classifier.classify_each(find_images(photos))) == dict(zip(files, classifier.classify(files), strict=True))
    assert classifier.embed(photos).shape == (3, classifier.model.num_features)


def test_bad_images_are_skipped_with_a_warning_each(classifier, photos):
    with pytest.warns(UserWarning, match='skipped') as caught:
        results = classifier.classify(photos, on_error='skip', batch_size=2)
    assert [len(result) for result in results] == [5, 0, 5, 0, 5]
    assert [name for name in ('b.jpg', 'e.jpg') if not any(str(photos / name) in str(w.message) for w in caught)] == []
    assert len(caught) == 2 and {w.filename for w in caught} == {__file__}
    good = [photos / name for name in ('a.jpg', 'c.jpg', 'more/d.jpg')]
    for found, expected in zip([results[i] for i in (0, 2, 4)], classifier.classify(good), strict=True):
        assert_close(found, expected)
    with pytest.warns(UserWarning, match='is empty'):
        assert classifier.classify(b'', on_error='skip') == []


def test_bad_images_raise_by_default(classifier, photos):
    for call in (classifier.classify, classifier.embed):
        for images in (photos, photos / 'b.jpg', [EXAMPLES[0], photos / 'b.jpg']):
            with pytest.raises(ImageError, match=r'b\.jpg'):
                call(images)
        with pytest.raises(ImageError, match='is a folder'):
            call([photos])
        with pytest.raises(ImageError, match='list of its images'):
            call(torch.zeros(2, 3, 32, 32))
        (photos / 'none').mkdir(exist_ok=True)
        with pytest.raises(ImageError, match='holds no image'):
            call(photos / 'none')


def test_classify_each_pairs_images_with_predictions_or_errors(classifier, photos):
    files = find_images(photos)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pairs = list(classifier.classify_each(files, k=2, batch_size=2))
    assert [image for image, _ in pairs] == files
    for image, outcome in pairs:
        if image.name in ('b.jpg', 'e.jpg'):
            assert isinstance(outcome, ImageError) and str(image) in str(outcome)
        else:
            assert_close(outcome, classifier.classify(image, k=2))


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_no_more_images_are_taken_than_promised(classifier, workers):
    taken = []

    def images():
        for i in itertools.count():
            taken.append(i)
            yield EXAMPLES[i % 8]

    pairs = classifier.classify_each(images(), batch_size=2, workers=workers)
    assert not taken
    for given in range(1, 12):
        next(pairs)
        assert len(taken) - given <= (2 * workers + 1) * 2
    assert not torch.is_inference_mode_enabled()
    pairs.close()
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith('igczoo')]


def test_threads_change_nothing_but_the_time(classifier, photos):
    files = [*EXAMPLES, *find_images(photos), *EXAMPLES]
    cores = torch.get_num_threads()
    expected = list(classifier.classify_each(files, k=10, workers=0))
    for workers in (1, 2, 5, None):
        pairs = list(classifier.classify_each(iter(files), k=10, workers=workers))
        assert [image for image, _ in pairs] == files
        for (_, found), (_, outcome) in zip(pairs, expected, strict=True):
            if isinstance(outcome, ImageError):
                assert str(found) == str(outcome)
            else:
                assert_close(found, outcome)
    torch.testing.assert_close(classifier.embed(EXAMPLES, workers=3), classifier.embed(EXAMPLES, workers=0), rtol=0, atol=1e-5)
    assert torch.get_num_threads() == cores and not threads()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == cores


def test_each_thread_computes_on_its_share_of_the_cores(classifier):
    seen = []

    def preprocess(image):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return classifier.preprocess(image)

    cores = torch.get_num_threads()
    other = Classifier(classifier.model, preprocess, LABELS)
    torch.set_num_threads(4)
    try:
        other.classify(EXAMPLES, workers=2)
        assert {cores for _, cores in seen} == {2} and threading.get_ident() not in dict(seen)
        seen.clear()
        other.classify(EXAMPLES[0], workers=2)
        other.classify(EXAMPLES[:2], workers=0)
        assert set(seen) == {(threading.get_ident(), 4)}
    finally:
        torch.set_num_threads(cores)


def test_an_interrupt_ends_the_threads(classifier):
    def images():
        yield from EXAMPLES
        signal.raise_signal(signal.SIGINT)
        yield from EXAMPLES

    with pytest.raises(KeyboardInterrupt):
        list(classifier.classify_each(images(), batch_size=2, workers=2))
    assert not threads()


def test_an_interrupt_does_not_wait_for_what_is_fetched(classifier):
    """Of a server that accepts and never answers."""
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/'

        def images():
            yield from [f'{url}{number}' for number in range(6)]
            signal.raise_signal(signal.SIGINT)

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(classifier.classify_each(images(), batch_size=2, workers=2))
        assert time.monotonic() - began < photograph.FETCH_SECONDS / 2 and not threads()


def test_calls_that_overlap_leave_torch_its_threads():
    cores = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        first = ahead(lambda item: item, range(9), 3)
        next(first)
        with ThreadPoolExecutor(1) as other:
            second = other.submit(lambda: [torch.get_num_threads() for _ in ahead(lambda item: item, range(9), 3)])
            second.result()
            assert other.submit(torch.get_num_threads).result() == 6
        first.close()
        assert torch.get_num_threads() == 6
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 6
    finally:
        torch.set_num_threads(cores)


def test_each_skipped_image_is_a_warning_whatever_the_threads_do(classifier):
    images = [image for name in range(40) for image in (EXAMPLES[name % len(EXAMPLES)], f'none/{name}.jpg')]
    for workers in (0, 1, 4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            found = classifier.classify(images, k=1, batch_size=2, on_error='skip', workers=workers)
        assert len(caught) == 40 and [not one for one in found] == [False, True] * 40


def test_warnings_of_others_are_as_they_were_after_a_loop(classifier):
    before = list(warnings.filters)
    for _ in classifier.classify_each(EXAMPLES * 3, batch_size=1, workers=4):
        with warnings.catch_warnings():
            warnings.simplefilter('always')
    with pytest.warns(UserWarning, match='heard'):
        warnings.warn('heard', stacklevel=1)
    open_image(EXAMPLES[0])
    assert warnings.filters == before


def test_a_folder_is_gone_through_by_its_images(classifier, photos):
    for folder in (photos, str(photos)):
        assert [image for image, _ in classifier.classify_each(folder, k=1)] == find_images(photos)
    (image, outcome), = classifier.classify_each(str(EXAMPLES[0]), k=1)
    assert image == str(EXAMPLES[0]) and outcome[0].label in classifier.labels


def test_one_image_object_many_times(classifier):
    """Pillow decodes it when it is first used, here by several threads at once."""
    expected = classifier.classify(Image.open(EXAMPLES[0]))
    image = Image.open(EXAMPLES[0])
    for found in classifier.classify([image] * 12, batch_size=1, workers=4):
        assert_close(found, expected)


def test_what_stops_the_images_comes_after_those_before_it(classifier):
    def images():
        yield from EXAMPLES[:4]
        raise OSError('the camera is gone')

    pairs, found = classifier.classify_each(images(), batch_size=2, workers=2), []
    with pytest.raises(OSError, match='the camera is gone'):
        found += (image for image, _ in pairs)
    assert not threads()
    with closing(classifier.classify_each(images(), batch_size=2, workers=2)) as pairs:
        assert [next(pairs)[0] for _ in range(4)] == EXAMPLES[:4]


def test_a_copy_of_a_classifier(classifier):
    for copied in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert copied.classify(EXAMPLES[0]) == classifier.classify(EXAMPLES[0])


def test_an_error_of_the_model_ends_the_threads(classifier):
    def broken(image):
        raise RuntimeError('no memory')

    with pytest.raises(RuntimeError, match='no memory'):
        list(Classifier(classifier.model, broken, LABELS).classify_each(EXAMPLES, workers=2))
    assert not threads()


def test_training_mode_does_not_change_the_answer(classifier):
    expected, before = classifier.classify(EXAMPLES[0]), {k: v.clone() for k, v in classifier.model.state_dict().items()}
    classifier.model.train()
    assert classifier.classify(EXAMPLES[0]) == expected
    classifier.model.train()
    classifier.embed(EXAMPLES[0])
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize('arguments, found', [
    ({'k': 0}, 'k is 0'), ({'k': 2.0}, 'k is 2.0'), ({'k': True}, 'k is True'), ({'batch_size': 0}, 'batch_size is 0'),
    ({'batch_size': None}, 'batch_size is None'), ({'workers': -1}, 'workers is -1'), ({'workers': True}, 'workers is True'),
    ({'on_error': 'ignore'}, "'raise' or 'skip'")])
def test_bad_arguments(classifier, arguments, found):
    with pytest.raises(ValueError, match=found):
        classifier.classify(EXAMPLES[0], **arguments)
    if 'on_error' not in arguments:
        with pytest.raises(ValueError, match=found):
            classifier.classify_each([], **arguments)
    if 'batch_size' in arguments or 'workers' in arguments:
        with pytest.raises(ValueError, match=found):
            classifier.embed([], **arguments)


# Loading

def test_attributes(classifier):
    assert classifier.labels == LABELS
    assert (classifier.device, classifier.dtype) == (torch.device('cpu'), torch.float32)
    assert not classifier.model.training
    assert classifier.preprocess(Image.new('RGB', (50, 40))).shape == (3, 32, 32)


def test_bfloat16(checkpoint, classifier):
    half = load(checkpoint, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.embed(EXAMPLES[:2]).dtype == torch.float32
    found, expected = ({p.index: p.score for p in c.classify(EXAMPLES[0], k=10)} for c in (half, classifier))
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert found == pytest.approx(expected, abs=.1)


def test_names_of_a_folder(checkpoint, classifier, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    monkeypatch.setenv('HOME', str(checkpoint.parent))
    names = (checkpoint, str(checkpoint), f'local-dir:{checkpoint}', 'birds', Path('birds'), './birds/', '~/birds', 'local-dir:~/birds')
    for name in names:
        assert load(name).classify(EXAMPLES[0]) == classifier.classify(EXAMPLES[0])


def test_labels_without_names(tmp_path):
    assert load(save(random_net(num_classes=3), tmp_path / 'three')).labels == ('0', '1', '2')
    thousand = load(save(random_net(num_classes=1000), tmp_path / 'thousand')).labels
    assert (len(thousand), thousand[779], thousand[0]) == (1000, 'school bus', ImageNetInfo().label_descriptions()[0])


def test_unknown_names():
    for name in ('igcnet19', 'igc_resnet20_l24m2.nothing', 'resnet18', ''):
        with pytest.raises(CardError) as caught:
            load(name)
        assert repr(name) in str(caught.value) and '\n' not in str(caught.value)


def broken(checkpoint: Path, folder: Path, defect: str) -> None:
    """A copy of the checkpoint with one defect."""
    folder.mkdir()
    config = json.loads((checkpoint / 'config.json').read_text())
    weights = load_file(checkpoint / 'model.safetensors')
    if defect == 'architecture':
        del config['architecture']
    elif defect in ('igcnet19', 'resnet18'):
        config['architecture'] = defect
    elif defect == 'labels':
        config['label_names'] = LABELS[:3]
    elif defect == 'shape':
        weights['head.weight'] = weights['head.weight'][1:]
    elif defect == 'key':
        weights['more'] = weights.pop('head.bias')
    elif defect == 'field':
        config['pretrained_cfg']['colour'] = 'red'
    if defect != 'no config':
        (folder / 'config.json').write_text('{' if defect == 'json' else '[]' if defect == 'list' else json.dumps(config))
    if defect != 'no weights':
        save_file(weights, folder / 'model.safetensors')
    if defect == 'damage':
        os.truncate(folder / 'model.safetensors', 1000)
    if defect == 'no weights':
        torch.save(weights, folder / 'pytorch_model.bin')


@pytest.mark.parametrize('defect, found', [
    ('no config', 'has no config.json'), ('no weights', 'has no model.safetensors'), ('json', 'config.json'), ('list', 'config.json'),
    ('architecture', 'config.json'), ('igcnet19', 'igcnet19'), ('resnet18', "'resnet18', which is not of igczoo"), ('labels', '3 labels'),
    ('shape', 'head.weight'), ('key', 'more'), ('field', 'colour'), ('damage', 'cannot be loaded')])
def test_broken_folders(checkpoint, tmp_path, defect, found):
    folder = tmp_path / 'broken'
    broken(checkpoint, folder, defect)
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and found in message and '\n' not in message and len(message) < 700


def test_missing_folder(tmp_path):
    for name in (tmp_path / 'missing', f'local-dir:{tmp_path}/missing', 'someone/missing'):
        with pytest.raises(ValueError, match='missing: there is no such folder'):
            load(name)


def test_impossible_name_of_a_repository():
    with pytest.raises(ValueError, match=r'^hf-hub:a/b/c: cannot be loaded \(.*\); check its name') as caught:
        load('hf-hub:a/b/c')
    assert '\n' not in str(caught.value)


def test_devices_and_dtypes_that_cannot_be(checkpoint):
    with pytest.raises(ValueError, match="device is 'gpu'"):
        load(checkpoint, device='gpu')
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda'"):
            load(checkpoint, device='cuda')
    for dtype in (torch.int8, 'bfloat16'):
        with pytest.raises(ValueError, match='dtype is'):
            load(checkpoint, dtype=dtype)


def test_labels_must_fit_the_model():
    with pytest.raises(ValueError, match='2 labels for a model of 10 classes'):
        Classifier(igc_resnet(), lambda image: image, ['a', 'b'])


@pytest.mark.parametrize('name', [name for name in cards() if (weights_folder() / name / 'model.safetensors').exists()])
def test_every_checkpoint_that_ships_loads(name):
    card, classifier = cards()[name], load(name)
    assert len(classifier.labels) == card.num_classes
    assert classifier.labels == card.labels or card.labels == 'imagenet-1k'
    assert classifier.preprocess(Image.new('RGB', (50, 40))).shape == card.preprocess.input_size
    assert len(classifier.classify(EXAMPLES[0])) == 5


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_is_an_error_of_its_image_alone(value):
    net = igc_resnet(8, 4, 2).eval()

    def preprocess(image):
        x = torch.zeros(3, 32, 32)
        x[0, 0, 0] = value if image.size == (5, 5) else 0
        return x

    classifier = Classifier(net, preprocess, map(str, range(10)))
    images = [Image.new('RGB', size) for size in ((4, 4), (5, 5), (6, 6))]
    outcomes = [outcome for _, outcome in classifier.classify_each(images, k=1)]
    assert [isinstance(outcome, ImageError) for outcome in outcomes] == [False, True, False]
    assert 'the model gives nan for it, which is no score' in str(outcomes[1])
    with pytest.raises(ImageError, match='which is no score'):
        classifier.classify(images)
    with pytest.raises(ImageError, match='which is no score'):
        classifier.embed(images)


def test_a_model_of_grey_images_is_refused(tmp_path):
    model = timm.create_model('igc_resnet20_l4m8', in_chans=1)
    timm.models.save_for_hf(model, tmp_path / 'grey', safe_serialization=True, model_config=dict(
        pretrained_cfg=dict(model.pretrained_cfg, input_size=(1, 32, 32), mean=(.5,), std=(.2,), tag='grey')))
    with pytest.raises(ValueError, match=r'grey: cannot be loaded .it takes images of 1 channels, and photographs have 3'):
        load(tmp_path / 'grey')
