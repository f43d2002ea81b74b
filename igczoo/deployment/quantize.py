"""export_int8(classifier, path, ...): the deployed form in eight bits for ONNX Runtime, compared with float32 before it takes its place."""
from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .export import check_target, export, open_onnx

if TYPE_CHECKING:
    from ..inference.classifier import Classifier

__all__ = ['Quantized', 'check_int8_target', 'export_int8', 'quantize']

LEAST_EQUAL = .9    # of the images held out that must be called what float32 calls them


@dataclass(frozen=True)
class Quantized:
    """What `export_int8` measured."""
    size: int           # bytes of the file
    float_size: int     # bytes of the same in float32
    images: int         # that were held out
    equal: int          # of these, the ones whose first class is the one that float32 gives


def export_int8(
        classifier: Classifier, path: str | os.PathLike, calibration: Iterable[Tensor], held_out: Iterable[Tensor],
) -> Quantized:
    """Write the portable deployed form of a checkpoint with weights and maps of eight bits, as an ONNX file with what `export` says in it.

    The numbers are made by ONNX Runtime's static quantization: of weights a scale for each output channel and seven of the bits, for x86
    processors without VNNI add products of eight in too few; of maps one scale, by the range they have on a batch of the calibration
    images, averaged over the batches: so one odd image does not coarsen it for all. The stem's convolution stays as it is.

    Args:
        classifier: as `igczoo.load` gives it.
        path: a file to write, in a folder that exists: .onnx; needs `pip install 'igczoo[export]'`.
        calibration: batches (N, 3, H, W), about ten at a time, of photographs such as the net was trained on, preprocessed; some
            hundreds in all.
        held_out: likewise others, to compare with float32.

    Raises:
        ValueError: another suffix, no such folder, no image, or the model cannot be deployed.
        RuntimeError: a package is missing, or fewer than 9 of 10 images held out are called what float32 calls them; nothing is written.
    """
    path = check_int8_target(path)
    calibration, held_out = (_some(batches, f'{path}: there is no image to {use}') for batches, use in (
        (calibration, 'calibrate on; give some hundreds'), (held_out, 'compare with float32; hold some out')))
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        floats, beside = Path(folder, f'float-{path.name}'), Path(folder, path.name)
        export(classifier, floats)
        quantize(floats, beside, calibration)
        images, equal = _compare(floats, beside, held_out)
        if equal < LEAST_EQUAL * images:
            raise RuntimeError(f'{path}: not written, because it calls only {equal} of {images} images what float32 calls them; calibrate '
                               'on more photographs of what the net was trained on, or export without int8')
        found = Quantized(beside.stat().st_size, floats.stat().st_size, images, equal)
        os.replace(beside, path)
    return found


def _some(batches: Iterable[Tensor], otherwise: str) -> Iterator[Tensor]:
    """The batches; a ValueError where there is none."""
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        raise ValueError(otherwise)
    return itertools.chain([first], batches)


def check_int8_target(path: str | os.PathLike) -> Path:
    """The path as `export_int8` takes it.

    Raises:
        ValueError, RuntimeError: as `export_int8` where the model does not matter.
    """
    path = check_target(path)
    if path.suffix != '.onnx':
        raise ValueError(f"{path}: its suffix is '{path.suffix}'; of int8 it must be .onnx")
    return path


def quantize(source: Path, target: Path, calibration: Iterable[Tensor]) -> None:
    """Write the int8 form of an ONNX file whose input is ``image``, with the same metadata_props."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        inputs = ({'image': batch.numpy()} for batch in calibration)

        def get_next(self) -> dict | None:
            return next(self.inputs, None)

    prepared = target.with_name(f'prepared-{target.name}')
    quant_pre_process(source, prepared, skip_symbolic_shape=True, skip_optimization=True)      # by the shapes alone
    floats = onnx.load(source)
    stem = next(node.name for node in floats.graph.node if node.op_type == 'Conv')      # next to no weights, and all depends on it
    quantize_static(
        prepared, target, Reader(), QuantFormat.QDQ, per_channel=True, reduce_range=True, nodes_to_exclude=[stem],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        extra_options={'CalibMovingAverage': True})
    model = onnx.load(target)
    facts = {prop.key: prop.value for prop in floats.metadata_props}
    onnx.helper.set_model_props(model, facts)       # without those of the preparation
    onnx.checker.check_model(model)
    target.write_bytes(model.SerializeToString())


def _compare(floats: Path, beside: Path, held_out: Iterable[Tensor]) -> tuple[int, int]:
    """How many images there are, and how many of them both files call the same."""
    run, run_int8 = open_onnx(floats), open_onnx(beside)
    images = equal = 0
    for batch in held_out:
        images += len(batch)
        equal += int((run(batch).argmax(1) == run_int8(batch).argmax(1)).sum())
    return images, equal
