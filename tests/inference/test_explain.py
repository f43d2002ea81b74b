"""The heat map is Grad-CAM's, lies over the right part of the photograph, and is written as a picture."""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import igczoo
from igczoo.inference.classifier import Classifier
from igczoo.inference.explain import _over_photograph, check_picture
from igczoo.inference.photograph import open_image

CAR = Path(__file__).parents[2] / 'examples' / 'sports_car.jpg'
CFG = dict(crop_mode='center', crop_pct=1.)


@pytest.fixture(scope='module')
def classifier():
    return igczoo.load('igcnet18')


def test_it_is_the_positive_part_of_the_weighted_maps(classifier):
    """Computed here by hand: the classifier is linear in the pooled map, so the mean gradient of a channel is its weight / (h * w)."""
    found = classifier.explain(CAR)
    net, x = classifier.model, classifier.preprocess(open_image(CAR))[None]
    with torch.no_grad():
        features, weight = net.forward_features(x)[0], net.head.weight[found.prediction.index]
    cam = torch.einsum('chw,c->hw', features, weight / features[0].numel()).relu()
    expected = _over_photograph(cam / cam.max(), found.image.size, CFG)
    torch.testing.assert_close(found.heat, expected, rtol=1e-4, atol=1e-4)
    assert found.prediction.label == 'sports car'
    assert found.prediction.score == pytest.approx(classifier.classify(CAR, k=1)[0].score, abs=1e-5)


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
def test_a_net_without_such_maps_is_refused(name):
    net = timm.create_model(name, num_classes=2).eval()
    classifier = Classifier(net, create_transform(**resolve_model_data_config(net), is_training=False), ['cat', 'dog'])
    with pytest.raises(ValueError, match=r'explain: the last map of \w+ is \(1, .*\), where \(1, \d+, H, W\) is needed; name a convol'):
        classifier.explain(CAR)


def test_threads_explain_side_by_side(classifier):
    alone = classifier.explain(CAR)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda turn: classifier.explain(CAR) if turn % 2 else classifier.classify(CAR, k=1), range(12)))
    for one in found[1::2]:
        torch.testing.assert_close(one.heat, alone.heat, rtol=0, atol=1e-4)


def test_a_named_label_and_its_number(classifier):
    by_name = classifier.explain(CAR, 'convertible')
    index = classifier.labels.index('convertible')
    assert by_name.prediction.index == index and torch.equal(by_name.heat, classifier.explain(CAR, str(index)).heat)
    assert not torch.equal(by_name.heat, classifier.explain(CAR).heat)
    for wrong, message in (('automobile', "'automobile' is none of the 200 labels"), (200, 'label 200: there are classes 0 to 199')):
        with pytest.raises(ValueError, match=message):
            classifier.explain(CAR, wrong)


def test_a_deployed_classifier_is_explained_by_its_plain_net(classifier):
    fast = igczoo.Classifier(classifier.model, classifier.preprocess, classifier.labels, deploy=True)
    assert torch.equal(fast.explain(CAR).heat, classifier.explain(CAR).heat)


def test_the_heat_lies_where_the_net_looked():
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1      # above right of the square that it was shown
    whole = _over_photograph(heat, (300, 100), CFG)
    assert whole.shape == (100, 300) and whole[:, :100].abs().max() == whole[:, 200:].abs().max() == 0
    y, x = divmod(int(whole.argmax()), 300)
    assert y < 30 and 170 < x < 200
    half = _over_photograph(torch.ones(2, 2), (100, 100), dict(crop_mode='center', crop_pct=.5))
    torch.testing.assert_close(half, F.pad(torch.ones(50, 50), (25,) * 4))
    squashed = _over_photograph(torch.ones(2, 2), (300, 100), dict(crop_mode='squash', crop_pct=1.))
    torch.testing.assert_close(squashed, torch.ones(100, 300))
    with pytest.raises(ValueError, match="crops by 'border'"):
        _over_photograph(heat, (3, 3), dict(crop_mode='border', crop_pct=1.))


def test_the_picture(classifier, tmp_path):
    found = classifier.explain(CAR)
    found.save(tmp_path / 'heat.png')
    with Image.open(tmp_path / 'heat.png') as picture:
        assert max(picture.size) <= 1024 and picture.mode == 'RGB'
        assert abs(picture.width / picture.height - found.image.width / found.image.height) < .01
        saturation = picture.convert('HSV').getextrema()[1]
    assert saturation[1] > 100      # where the heat is; the photograph itself is grey
    for wrong, message in ((tmp_path / 'heat.bmp', 'ends in .*bmp'), (tmp_path / 'none' / 'heat.png', 'there is no such folder')):
        with pytest.raises(ValueError, match=message):
            check_picture(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ['heat.png']


def test_without_captum(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ValueError, match=r"needs captum; install it by pip install 'igczoo\[explain\]'"):
        classifier.explain(CAR)
