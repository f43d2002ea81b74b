"""An exported file computes what the model does, for any number of images, says how to use it, and is there whole or not at all."""
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from batch_norms import randomise

from igczoo.checkpoints.card import find_card
from igczoo.deployment import export as package
from igczoo.deployment.deploy import deploy
from igczoo.deployment.export import export, metadata, onnx_model, trace
from igczoo.inference.classifier import Classifier, load
from igczoo.nets import igcv3
from igczoo.nets.igcnet import igc_resnet
from igczoo.nets.layers import IGConv2d

MISSING = [name for name in ('onnx', 'onnxruntime', 'onnxscript') if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install 'igczoo[export]'")
SUFFIXES = [pytest.param('.onnx', marks=needs_onnx), '.pt2']
NETS = {
    'M = 2': dict(model_name='igcnet18.in1k', stem_width=6, widths=(12, 24), primary=(6, 12), depths=(1, 1), num_classes=5,
                  pretrained_cfg_overlay=dict(input_size=(3, 64, 32), crop_mode='squash', license='cc0-1.0')),
    'M above L': dict(model_name='igc_resnet20_l4m8', widths=(32, 64), primary=(4, 4), depths=(1, 1)),
    'regular convolutions': dict(model_name='igc_regconv20_w16', depths=(1, 1, 1)),
    'IGCV2': dict(model_name='igcv2_20_c64', depths=(1, 1, 2)),
    'IGCV3': dict(model_name='igcv3_025', num_classes=5, pretrained_cfg_overlay=dict(input_size=(3, 64, 32))),
}


def classifier(name: str) -> Classifier:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:     # 32 units take long to export, and amplify what float32 rounds
        patch.setattr(igcv3, 'STAGES', [(expansion, channels, min(depth, 2)) for expansion, channels, depth in igcv3.STAGES])
        model = timm.create_model(**NETS[name])
    randomise(model)
    return Classifier(model, lambda image: image, [f'Käfer {i}' for i in range(model.num_classes)])


def read(path: Path):
    """The file as a function of a batch, and its metadata, without the package's own readers."""
    if path.suffix == '.pt2':
        extra = {'igczoo.json': ''}
        program = torch.export.load(path, extra_files=extra).module()
        return program, json.loads(extra['igczoo.json'])
    import onnx
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    facts = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
    return lambda x: torch.from_numpy(session.run(['logits'], {'image': x.numpy()})[0]), facts


@torch.inference_mode()
@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('name', NETS)
def test_the_file_computes_what_the_model_does(name, suffix, tmp_path):
    made = classifier(name)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    path = tmp_path / f'x{suffix}'
    path.write_text('a file that is there already')
    assert export(made, path) <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    run, facts = read(path)
    for n in (1, 2, 5):
        x = torch.randn(n, *facts['input_size'])
        torch.testing.assert_close(run(x), made.model(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in made.model.state_dict().items())


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_file_says_how_to_use_it(suffix, tmp_path):
    made = classifier('M = 2')
    export(made, tmp_path / f'x{suffix}')
    cfg, facts = made.model.pretrained_cfg, read(tmp_path / f'x{suffix}')[1]
    assert facts == json.loads(json.dumps(metadata(made)))
    assert facts == dict(
        name='igcnet18.in1k', license='cc0-1.0', input_size=[3, 64, 32], mean=list(cfg['mean']), std=list(cfg['std']),
        interpolation='bilinear', crop_pct=.875, crop_mode='squash', labels=['Käfer 0', 'Käfer 1', 'Käfer 2', 'Käfer 3', 'Käfer 4'])
    assert str(Path(package.__file__).parents[1]).encode() not in (tmp_path / f'x{suffix}').read_bytes()


@needs_onnx
def test_the_onnx_graph_has_no_batch_norm_and_no_interleave():
    """An interleave (N, L * M, H, W) -> (N, M * L, H, W) is a transpose of five dimensions."""
    def dims_of_transposes(net: torch.nn.Module) -> tuple[list[int], set[str]]:
        graph = onnx_model(trace(net, (3, 64, 32))).graph
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == graph.output[0].type.tensor_type.shape.dim[0].dim_param == 'N'
        return [len(node.attribute[0].ints) for node in graph.node if node.op_type == 'Transpose'], {node.op_type for node in graph.node}

    assert 5 in dims_of_transposes(IGConv2d(3, 6, 3))[0]
    dims, operations = dims_of_transposes(deploy(classifier('M = 2').model, portable=True))
    assert 5 not in dims and operations & {'Conv', 'BatchNormalization', 'Shuffle', 'DepthToSpace', 'Dropout'} == {'Conv'}


def test_a_classifier_that_computes_otherwise(tmp_path):
    """In bfloat16, by a deployed form or in training mode: the file is of its weights, in float32 and for inference."""
    made = classifier('M = 2')
    made = Classifier(made.model.bfloat16(), made.preprocess, made.labels, deploy=True)
    made.model.train()
    export(made, tmp_path / 'x.pt2')
    assert made.model.training and made.dtype == torch.bfloat16
    x = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(read(tmp_path / 'x.pt2')[0](x), made.model.eval().float()(x), rtol=1e-4, atol=1e-4)


def test_metadata_of_a_checkpoint():
    card = find_card('igc_resnet20_l24m2')
    facts = metadata(load(card.name))
    assert (facts['name'], facts['license'], facts['labels']) == (card.name, card.license, card.labels)
    assert {field: facts[field] for field in asdict(card.preprocess)} == asdict(card.preprocess)


@pytest.mark.parametrize('value', [1., float('nan')])
def test_a_file_that_computes_something_else_is_not_written(value, tmp_path, monkeypatch):
    write, read = package.FORMATS['.pt2']
    monkeypatch.setitem(package.FORMATS, '.pt2', (write, lambda path: lambda x: read(path)(x) + value))
    with pytest.raises(RuntimeError, match=r'x\.pt2: not written, because its logits differ'):
        export(classifier('M above L'), tmp_path / 'x.pt2')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('file, message', [
    ('x.txt', "its suffix is '.txt'; it must be .onnx or .pt2"), ('x', "its suffix is ''"), ('none/x.pt2', 'there is no folder'),
    ('folder.pt2', 'is a folder')])
def test_files_that_cannot_be(file, message, tmp_path):
    (tmp_path / 'folder.pt2').mkdir()
    with pytest.raises(ValueError) as caught:
        export('nonesuch', tmp_path / file)
    assert str(caught.value).startswith(f'{tmp_path / file}: ') and message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime', 'onnxscript'])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    for name in ('onnx', 'onnxruntime', 'onnxscript'):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    with pytest.raises(RuntimeError, match=rf"{package} is missing; pip install 'igczoo\[export\]', or write .pt2"):
        export('nonesuch', tmp_path / 'x.onnx')


def test_models_that_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match=r'IGCNet has no pretrained_cfg'):
        export(Classifier(igc_resnet(8, 4, 2), None, range(10)), tmp_path / 'x.pt2')
    other = timm.create_model('igc_resnet20_l4m8', depths=(1, 1, 1), norm_layer='groupnorm1')
    with pytest.raises(ValueError, match='must be BatchNorm2d'):
        export(Classifier(other, None, range(10)), tmp_path / 'x.pt2')
    assert list(tmp_path.iterdir()) == []
