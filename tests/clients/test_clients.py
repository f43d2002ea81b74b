"""Other people's libraries with igczoo's models: what works with timm's own must work with these."""
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import timm
import torch

import igczoo
from igczoo.checkpoints.card import weights_folder
from igczoo.inference.photograph import open_image

pytestmark = pytest.mark.clients

EXAMPLES = Path(__file__).parents[2] / 'examples'
FOLDER = weights_folder() / 'igcnet18.tinyimagenet'


@pytest.fixture(autouse=True)
def their_warnings():
    """What these libraries warn of is their own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model('igcnet18', pretrained=True).eval()


def test_transformers_pipeline_gives_our_labels():
    from transformers import pipeline
    classify = pipeline('image-classification', model=str(FOLDER), device='cpu')
    ours = igczoo.load('igcnet18')
    for photograph in ('school_bus.jpg', 'sports_car.jpg'):
        theirs, own = classify(str(EXAMPLES / photograph))[0], ours.classify(EXAMPLES / photograph, k=1)[0]
        assert theirs['label'] == own.label and abs(theirs['score'] - own.score) < 1e-3


@pytest.mark.parametrize('imports', ['igczoo, transformers, timm', 'transformers, igczoo, timm', 'igczoo, timm, transformers'])
def test_transformers_imported_anywhere(imports):
    """It looks timm up before it imports it."""
    code = f'import {imports}\nfrom transformers import TimmWrapperModel\nprint(timm.create_model("igcnet18").num_classes)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.stdout == '200\n', done.stderr


@pytest.mark.parametrize(('architecture', 'options'), [
    ('Unet', {}), ('DeepLabV3Plus', {'encoder_output_stride': 8}), ('DeepLabV3Plus', {'encoder_output_stride': 16}), ('FPN', {})])
def test_segmentation_models_pytorch(net, architecture, options):
    import segmentation_models_pytorch as smp
    model = getattr(smp, architecture)('tu-igcnet18', encoder_weights=None, classes=3, **options)
    weights = {f'model.{key}': value for key, value in net.state_dict().items()}
    taken = {key.replace('model.stem_', 'model.stem.').replace('stages_', 'stages.') for key in model.encoder.state_dict()}
    assert {key for key in weights if not key.startswith('model.head')} == taken
    x = torch.randn(2, 3, 64, 64)
    assert model.eval()(x).shape == (2, 3, 64, 64)
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize('name', ['igcv2_025', 'igcv3_025'])
def test_segmentation_by_the_later_generations(name):
    import segmentation_models_pytorch as smp
    x = torch.randn(2, 3, 64, 64)
    model = smp.Unet(f'tu-{name}', encoder_weights=None, classes=3).eval()
    assert [64 // found.shape[2] for found in model.encoder(x)] == [1, 2, 4, 8, 16, 32] and model(x).shape == (2, 3, 64, 64)
    deeplab = smp.DeepLabV3Plus(f'tu-{name}', encoder_weights=None, encoder_output_stride=16, classes=3).eval()
    assert deeplab(x).shape == (2, 3, 64, 64)


def test_segmentation_with_the_pretrained_encoder():
    import segmentation_models_pytorch as smp
    encoder = smp.Unet('tu-igcnet18', encoder_weights='imagenet', classes=3).encoder.eval()
    taps = timm.create_model('igcnet18', pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for theirs, ours in zip(encoder(x)[1:], taps(x), strict=True):
            torch.testing.assert_close(theirs, ours)


def test_faster_rcnn_on_the_features():
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model('igcnet18', pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
            self.neck = FeaturePyramidNetwork(self.body.feature_info.channels(), 64)
            self.out_channels = 64

        def forward(self, x):
            return self.neck({str(level): feature for level, feature in enumerate(self.body(x))})

    torch.manual_seed(0)
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,)), ((.5, 1., 2.),) * 4)
    detector = FasterRCNN(Backbone(), num_classes=3, rpn_anchor_generator=anchors, min_size=96, max_size=128)
    targets = [dict(boxes=torch.tensor([[10., 10., 60., 60.]]), labels=torch.tensor([1]))]
    losses = detector.train()([torch.rand(3, 96, 96)], targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert detector.backbone.body.stem_conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found, = detector.eval()([torch.rand(3, 96, 96)])
    assert set(found) == {'boxes', 'labels', 'scores'}


def test_captum(net):
    """Completeness: the attributions add up to the difference of the logit from that of the baseline."""
    from captum.attr import IntegratedGradients, LayerGradCam
    x = igczoo.load('igcnet18').preprocess(open_image(EXAMPLES / 'school_bus.jpg'))[None]
    label = net(x).argmax(1).item()
    given, missing = IntegratedGradients(net).attribute(x, target=label, n_steps=64, internal_batch_size=16, return_convergence_delta=True)
    assert given.shape == x.shape and missing.abs().item() < .05 * (net(x) - net(torch.zeros_like(x)))[0, label].abs().item()
    heat = LayerGradCam(net, net.stages[-1]).attribute(x, target=label)
    assert heat.shape[2:] == net.forward_features(x).shape[2:] and heat.abs().sum() > 0


def test_create_feature_extractor(net):
    from torchvision.models.feature_extraction import create_feature_extractor
    taps = create_feature_extractor(net, ['stages.1', 'stages.3'])
    own = timm.create_model('igcnet18', pretrained=True, features_only=True, out_indices=(2, 4)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for theirs, ours in zip(taps(x).values(), own(x), strict=True):
            torch.testing.assert_close(theirs, ours)


def test_the_portable_form_takes_fx_script_and_hooks(net):
    x = torch.randn(2, 3, 64, 64)
    fast = igczoo.deploy(net, portable=True)
    with torch.no_grad():
        expected = fast(x)
        torch.testing.assert_close(torch.fx.symbolic_trace(fast)(x), expected)
        torch.testing.assert_close(torch.jit.script(fast)(x), expected)
        torch.testing.assert_close(torch.jit.trace(fast, x)(x), expected)
    seen = []
    convolutions = [module for module in fast.modules() if isinstance(module, torch.nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(lambda module, *_: seen.append(module))
    fast(x)
    assert set(seen) == set(convolutions)


def test_fvcore_counts(net):
    from fvcore.nn import FlopCountAnalysis
    x = torch.randn(1, 3, 96, 96)
    plain = FlopCountAnalysis(net, x).unsupported_ops_warnings(False).total()
    portable = FlopCountAnalysis(igczoo.deploy(net, portable=True), x).unsupported_ops_warnings(False).total()
    assert abs(plain / 232.9e6 - 1) < .02 and abs(portable / plain - 1) < .1, (plain, portable)


def test_a_pipeline_over_bytes_in_memory():
    """As `datasets` and web servers give images: opened already."""
    from PIL import Image
    from transformers import pipeline
    classify = pipeline('image-classification', model=str(FOLDER), device='cpu')
    with Image.open(EXAMPLES / 'school_bus.jpg') as image:
        assert classify([image, image.convert('L').convert('RGB')], top_k=1)[0][0]['label'] == igczoo.load('igcnet18').classify(
            image, k=1)[0].label


SCRIPT = """
    import timm, torch, igczoo
    net = timm.create_model('igcnet18', num_classes=5)
    scripted = torch.jit.script(net.eval())
    print(scripted(torch.randn(1, 3, 64, 64)).shape[1])
"""


def test_the_plain_net_scripts():
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert done.stdout == '5\n', done.stderr
