"""export(classifier, path): the deployed form of a checkpoint as one file for another engine, checked before it takes its place."""
from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .deploy import deploy

if TYPE_CHECKING:
    from ..inference.classifier import Classifier

__all__ = ['check_target', 'export', 'metadata', 'onnx_model', 'open_onnx', 'open_pt2', 'trace']

TOLERANCE = 1e-4    # of the spread of the logits
WEIGHTS = 2 ** 31   # bytes: all that is computed from weights alone is computed now
PT2_METADATA = 'igczoo.json'


def export(classifier: Classifier, path: str | os.PathLike) -> float:
    """Write the portable deployed form of a checkpoint, in float32, for any number of images of the checkpoint's input size.

    The graph takes an image batch (N, 3, H, W) that is preprocessed already, and gives logits (N, classes); in ONNX they are named
    ``image`` and ``logits``. What `metadata` says stands in the file: as metadata_props of an ONNX model, each value in JSON, and as the
    extra file igczoo.json of a PyTorch program. The file is run with one image and with three and compared with the model before it
    takes its place, where it replaces one that is there.

    Args:
        classifier: as `igczoo.load` gives it.
        path: a file to write, in a folder that exists: .onnx, which needs `pip install 'igczoo[export]'`, or .pt2 for `torch.export.load`.

    Returns:
        The largest difference of a logit from the model's, relative to the spread (largest less smallest) of its logits.

    Raises:
        ValueError: another suffix, no such folder, or the model cannot be deployed.
        RuntimeError: a package is missing, or the file's logits differ by more than 1e-4 of their spread; nothing is written.
    """
    path = check_target(path)
    facts = metadata(classifier)
    model = copy.deepcopy(classifier.model).to('cpu', torch.float32).eval()
    program = trace(deploy(model, portable=True), facts['input_size'])
    write, read = FORMATS[path.suffix]
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        beside = Path(folder) / path.name
        write(program, facts, beside)
        deviation = _deviation(read(beside), model, facts['input_size'])
        if not deviation <= TOLERANCE:      # also for NaN
            raise RuntimeError(f"{path}: not written, because its logits differ from the model's by {deviation:.1e} of their spread, "
                               f'more than {TOLERANCE:.0e}; use other versions of torch or onnxruntime')
        os.replace(beside, path)
    return deviation


def check_target(path: str | os.PathLike) -> Path:
    """The path as `export` takes it.

    Raises:
        ValueError, RuntimeError: as `export` where the model does not matter.
    """
    path = Path(path).expanduser()
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: its suffix is '{path.suffix}'; it must be {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f'{path}: there is no folder {path.parent}; make it first')
    if path.is_dir():
        raise ValueError(f'{path}: is a folder; name a file')
    if path.suffix == '.onnx':
        try:
            for package in ('onnx', 'onnxruntime', 'onnxscript'):
                import_module(package)
        except ImportError as error:
            raise RuntimeError(f"{path}: {error.name or error} is missing; pip install 'igczoo[export]', or write .pt2") from None
    return path


def metadata(classifier: Classifier) -> dict[str, Any]:
    """The name and licence of the checkpoint, its preprocessing in timm's terms, and the name of each class."""
    cfg = getattr(classifier.model, 'pretrained_cfg', None)
    if not cfg:
        raise ValueError(f'export: {type(classifier.model).__name__} has no pretrained_cfg to say how to preprocess; give a model '
                         'of timm.create_model or igczoo.load')
    return dict(name=classifier.name, license=cfg.get('license'), **resolve_model_data_config(classifier.model), labels=classifier.labels)


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The graph of a model on the CPU in evaluation mode, for inputs (N, *input_size). Gives the model's weights a contiguous layout."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()      # both formats have trouble with others
    images = torch.export.Dim('N', max=2 ** 31 - 1)     # torch 2.6 takes no slice of a batch that may have 2 ** 63 - 1 images
    program = torch.export.export(model, (torch.zeros(2, *input_size),), dynamic_shapes=({0: images},), strict=False)
    for graph in (module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop('stack_trace', None)      # names files of this machine
    return program


def onnx_model(program: torch.export.ExportedProgram, facts: dict[str, Any] | None = None):
    """The onnx.ModelProto of a traced program, with ``facts`` as its metadata_props."""
    import onnx
    from onnxscript.optimizer import optimize
    exported = torch.onnx.export(program, input_names=['image'], output_names=['logits'], dynamo=True, verbose=False)
    optimize(exported.model, input_size_limit=WEIGHTS, output_size_limit=WEIGHTS)
    model = exported.model_proto
    graph = model.graph
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]      # the exporter's account of its work, longer than the graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = 'N'
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in (facts or {}).items()})
    onnx.checker.check_model(model)
    return model


def open_onnx(model: str | os.PathLike | bytes) -> Callable[[Tensor], Tensor]:
    """A function of the file or its bytes, computed by ONNX Runtime on the CPU in as many threads as PyTorch's."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(session.run(None, {'image': x.numpy()})[0])


def open_pt2(path: str | os.PathLike) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, facts: dict[str, Any], path: Path) -> None:
    path.write_bytes(onnx_model(program, facts).SerializeToString())


def _write_pt2(program: torch.export.ExportedProgram, facts: dict[str, Any], path: Path) -> None:
    torch.export.save(program, path, extra_files={PT2_METADATA: json.dumps(facts, ensure_ascii=False)})


FORMATS = {'.onnx': (_write_onnx, open_onnx), '.pt2': (_write_pt2, open_pt2)}


@torch.no_grad()
def _deviation(run: Callable[[Tensor], Tensor], model: nn.Module, input_size: tuple[int, int, int]) -> float:
    x = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    difference = max((run(x[:n]) - expected[:n]).abs().max() for n in (1, 3))
    return (difference / (expected.max() - expected.min())).item()
