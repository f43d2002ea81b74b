"""An int8 file computes about what the float32 one does, says the same of itself, and is there whole or not at all."""
import numpy as np
import pytest
import torch
from test_export import classifier, needs_onnx, read

from igczoo.deployment import quantize as package
from igczoo.deployment.export import export
from igczoo.deployment.quantize import export_int8

pytestmark = needs_onnx


@pytest.fixture
def made():
    return classifier('M above L')


def images(seed: int, batches: int = 3) -> torch.Tensor:
    return torch.randn(batches, 4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_the_file_computes_about_what_float32_does(made, tmp_path, capfd):
    import onnx
    path = tmp_path / 'x.onnx'
    path.write_text('a file that is there already')
    found = export_int8(made, path, images(0), iter(images(1, 8)))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert found.images == 32 and found.equal >= 29
    assert found.size == path.stat().st_size
    export(made, tmp_path / 'float.onnx')
    assert found.float_size == (tmp_path / 'float.onnx').stat().st_size
    run, facts = read(path)
    assert facts == read(tmp_path / 'float.onnx')[1]
    x = images(2)[0]
    with torch.inference_mode():
        expected = made.model(x)
    assert (run(x) - expected).abs().max() <= .1 * (expected.max() - expected.min())
    assert capfd.readouterr() == ('', '')
    graph = onnx.load(path).graph
    weights = {dequantize.output[0]: dequantize.input[0] for dequantize in graph.node if dequantize.op_type == 'DequantizeLinear'}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stem, *others = [node for node in graph.node if node.op_type == 'Conv']
    assert values[stem.input[1]].dtype == np.float32
    convolutions = [values[weights[node.input[1]]] for node in others]
    assert {weight.dtype for weight in convolutions} == {np.dtype('int8')}
    assert max(np.abs(weight.astype(int)).max() for weight in convolutions) == 64       # seven bits


@pytest.mark.parametrize('there', [True, False])
def test_a_file_that_calls_images_otherwise_is_not_written(made, tmp_path, monkeypatch, there):
    if there:
        (tmp_path / 'x.onnx').write_text('mine')
    monkeypatch.setattr(package, 'open_onnx', lambda path: lambda x: torch.eye(8)[[int(path.name == 'x.onnx')]].expand(len(x), 8))
    with pytest.raises(RuntimeError, match=r'x\.onnx: not written, because it calls only 0 of 12 images what float32 calls them'):
        export_int8(made, tmp_path / 'x.onnx', images(0), images(1))
    assert [file.read_text() for file in tmp_path.iterdir()] == ['mine'] * there


def test_calls_that_cannot_be(made, tmp_path):
    with pytest.raises(ValueError, match=r"x\.pt2: its suffix is '\.pt2'; of int8 it must be \.onnx"):
        export_int8(made, tmp_path / 'x.pt2', images(0), images(1))
    with pytest.raises(ValueError, match=r'x\.onnx: there is no image to calibrate on; give some hundreds'):
        export_int8(made, tmp_path / 'x.onnx', [], images(1))
    with pytest.raises(ValueError, match=r'x\.onnx: there is no image to compare with float32; hold some out'):
        export_int8(made, tmp_path / 'x.onnx', images(0), [])
    assert list(tmp_path.iterdir()) == []
