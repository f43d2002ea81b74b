"""bench(models): how fast a model is in each of its forms, all timed in turns in one process, and how much memory a pass takes.

A form is the model as it is written ("plain"), or an equal one: deployed, compiled, or exported to ONNX Runtime. Weights are random.
"""
from __future__ import annotations

import copy
import ctypes
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..nets.net import Net
from .deploy import deploy, forms_used
from .export import onnx_model, open_onnx, trace
from .placement import check_placement
from .quantize import quantize

__all__ = ['PLAIN', 'Candidate', 'Timing', 'bench', 'candidates', 'host', 'peak_memory', 'ratio', 'table']

PLAIN = ('plain, NCHW', 'plain, channels_last')
LEAST = 0.1     # seconds of one measurement, at least; quick passes are repeated until then


@dataclass(frozen=True)
class Candidate:
    """One form of a model, ready to run."""
    form: str
    run: Callable[[], Any]                                  # one forward pass of one batch
    layers: dict[str, str] = field(default_factory=dict)    # of a deployed form: the form of each IGC layer or unit


@dataclass(frozen=True)
class Timing:
    """What was measured of one form at one batch size and dtype."""
    model: str
    form: str
    dtype: str
    batch_size: int
    size: tuple[int, int]       # height and width of the images in pixels
    seconds: tuple[float, ...]  # a forward pass takes, in each round
    layers: dict[str, str]      # of a deployed form: the form of each IGC layer or unit

    @property
    def images_per_second(self) -> float:
        """Of the median round."""
        return self.batch_size / median(self.seconds)

    @property
    def setting(self) -> str:
        return f'{self.dtype}, batch {self.batch_size}'


def bench(
        models: Sequence[str],
        size: int | None = None,
        batch_sizes: Sequence[int] = (1, 8),
        dtypes: Sequence[torch.dtype] = (torch.float32,),
        device: str | torch.device = 'cpu',
        compile: bool = False,
        onnx: bool = True,
        int8: bool = False,
        rounds: int = 5,
) -> list[Timing]:
    """Time every form of every model; in each round each one runs once, so that whatever slows the machine slows them alike.

    Args:
        models: names that `timm.create_model` takes.
        size: height and width of the images, in pixels; those of the model's cfg if None.
        batch_sizes: images at a time.
        dtypes: of weights and images.
        device: where to compute.
        compile: also the forms of `torch.compile` with frozen weights, which takes about half a minute each to build.
        onnx: also ONNX Runtime, where it is installed and the device is a CPU and the dtype float32.
        int8: likewise also its int8, calibrated on noise.
        rounds: how many.

    Raises:
        ValueError: timm has no such model, or there is no such device here or no such dtype.
    """
    for name in models:
        _check(name)
    for dtype in dtypes:
        check_placement(device, dtype)
    timings = []
    for dtype, batch_size in product(dtypes, batch_sizes):
        found = [(name, tuple(x.shape[2:]), candidate) for name in models for x in [_images(name, size, batch_size, dtype, device)]
                 for candidate in candidates(name, x, compile, onnx, int8)]
        progress = f'{_short(dtype)}, batch {batch_size}'
        seconds = _in_turns([candidate.run for *_, candidate in found], rounds, torch.device(device), progress)
        timings += [Timing(name, candidate.form, _short(dtype), batch_size, shown, tuple(measured), candidate.layers)
                    for (name, shown, candidate), measured in zip(found, seconds, strict=True)]
    return timings


@torch.inference_mode()
def _in_turns(calls: list[Callable[[], Any]], rounds: int, device: torch.device, progress: str) -> list[list[float]]:
    """Seconds of one call, of each call in each round."""
    synchronize = int if device.type == 'cpu' else partial(torch.accelerator.synchronize, device)

    def seconds(call: Callable[[], Any], repeats: int) -> float:
        synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        return (time.perf_counter() - started) / repeats

    repeats = []
    for call in tqdm(calls, f'{progress}, warm-up', disable=None, leave=False):
        seconds(call, 2)
        repeats.append(max(1, round(LEAST / seconds(call, 1))))
    return list(zip(*([seconds(call, n) for call, n in zip(calls, repeats, strict=True)]
                      for _ in tqdm(range(rounds), progress, disable=None, leave=False)), strict=True))


def candidates(name: str, x: Tensor, compile: bool = False, onnx: bool = True, int8: bool = False) -> list[Candidate]:
    """Every form of a model for a batch x (N, 3, H, W), of its device and dtype; deployed ones where the model is of this package."""
    model = _create(name, x)
    x_last = x.contiguous(memory_format=torch.channels_last)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = [Candidate(PLAIN[0], partial(model, x)), Candidate(PLAIN[1], partial(last, x_last))]
    if compile:
        found.append(Candidate('plain, compiled', partial(_compiled(last), x_last)))
    if isinstance(model, Net):
        deployed = deploy(model)
        nets = {
            'deployed': deployed, 'deployed by measurement': deploy(model, example=x), 'deployed, portable': deploy(model, portable=True)}
        seen = []
        for form, net in nets.items():
            if forms_used(net) not in seen:
                seen.append(forms_used(net))
                found.append(Candidate(form, partial(net, x_last), forms_used(net)))
        if compile:
            found.append(Candidate('deployed, compiled', partial(_compiled(deployed), x_last), forms_used(deployed)))
    if onnx and (x.device.type, x.dtype) == ('cpu', torch.float32) and find_spec('onnxruntime') and find_spec('onnxscript'):
        models = zip(('ONNX Runtime', 'ONNX Runtime, int8'), _onnx(name, tuple(x.shape[1:]), int8), strict=False)
        found += (Candidate(form, partial(open_onnx(model), x)) for form, model in models)
    return found


def _compiled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    torch._dynamo.config.cache_size_limit = torch._dynamo.config.accumulated_cache_size_limit = 1000    # all nets share one `forward`
    return torch.compile(net, dynamic=False, options={'freezing': True})


@cache
def _onnx(name: str, input_size: tuple[int, int, int], int8: bool) -> list[bytes]:
    """The ONNX file of a net with random weights, portably deployed where it is of this package; and that in int8."""
    model = _create(name, torch.empty(0))
    net = deploy(model, portable=True) if isinstance(model, Net) else model
    floats = onnx_model(trace(net, input_size)).SerializeToString()
    if not int8:
        return [floats]
    with TemporaryDirectory() as folder:
        files = Path(folder, 'floats.onnx'), Path(folder, 'int8.onnx')
        files[0].write_bytes(floats)
        quantize(*files, torch.randn(4, 2, *input_size, generator=torch.Generator().manual_seed(0)))
        return [file.read_bytes() for file in files]


def _create(name: str, x: Tensor) -> nn.Module:
    return timm.create_model(name).to(x.device, x.dtype).eval()


def _images(name: str, size: int | None, batch_size: int, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    height, width = (size, size) if size else timm.get_pretrained_cfg(name).input_size[1:]
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)


# Memory -------------------------------------------------------------------------------------------------------------------------------

def peak_memory(
        name: str, form: str, size: int | None, batch_sizes: Sequence[int], dtype: torch.dtype, device: str = 'cpu',
) -> dict[int, int] | None:
    """How many bytes a forward pass takes at its peak, beyond the weights, for each batch size.

    On a CPU: by how much the resident memory of a fresh process rises; None where the system does not say (other than Linux).

    Args:
        form: 'plain, NCHW', 'plain, channels_last' or 'deployed'.
        name, size, batch_sizes, dtype, device: as for `bench`.
    """
    arguments = (name, form, size, sorted(batch_sizes), dtype, device)
    if torch.device(device).type == 'cuda':
        return _peaks(*arguments)
    if not Path('/proc/self/clear_refs').exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(_peaks, *arguments).result()


@torch.inference_mode()
def _peaks(name: str, form: str, size: int | None, batch_sizes: list[int], dtype: torch.dtype, device: str) -> dict[int, int]:
    net = _create(name, torch.empty(0, dtype=dtype, device=device))
    net = net if form == PLAIN[0] else net.to(memory_format=torch.channels_last)
    net = deploy(net) if form == 'deployed' else net
    memory_format = torch.contiguous_format if form == PLAIN[0] else torch.channels_last
    net(_images(name, 32, 1, dtype, device).contiguous(memory_format=memory_format))     # starts threads and reads code
    xs = [_images(name, size, n, dtype, device).contiguous(memory_format=memory_format) for n in batch_sizes]
    peaks = {}
    for n, x in zip(batch_sizes, xs, strict=True):
        before = _forget_peak(device)
        net(x)
        peaks[n] = _peak(device) - before
    return peaks


def _peak(device: str) -> int:
    return _status('VmHWM') if device == 'cpu' else torch.cuda.max_memory_allocated(device)


def _forget_peak(device: str) -> int:
    """Start a new peak at the memory in use, which is given back."""
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(AttributeError):      # a C library without it
        ctypes.CDLL(None).malloc_trim(0)    # what is free already would hide what the pass takes
    Path('/proc/self/clear_refs').write_text('5')   # 5: the peak resident size
    return _status('VmRSS')


def _status(line: str) -> int:
    """Bytes, by a line of Linux's account of this process; its getrusage would start at the peak of the process that started it."""
    return 1024 * int(re.search(rf'^{line}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)[1])


# Report -------------------------------------------------------------------------------------------------------------------------------

def ratio(timing: Timing, timings: Iterable[Timing]) -> float:
    """How many times as fast as the faster plain form of the same model in the same setting, by the medians."""
    return timing.images_per_second / _fastest(timings, timing.model, timing.setting, PLAIN).images_per_second


def table(
        timings: Iterable[Timing], references: Mapping[str, str] | None = None, memory: dict[tuple[str, str, str], int] | None = None,
) -> str:
    """A Markdown table: images a second of the median round, the range of all rounds, and the `ratio`.

    Args:
        timings: as `bench` gives them.
        references: of models among them, another one whose fastest form their fastest is compared with.
        memory: bytes by model, form and setting ('float32, batch 8').
    """
    timings = list(timings)
    settings = list(dict.fromkeys(timing.setting for timing in timings))
    models = {timing.model for timing in timings}
    rows = [('model', 'form', *settings), ('---', '---', *('---:' for _ in settings))]
    for name, form in dict.fromkeys((timing.model, timing.form) for timing in timings):
        cells = {timing.setting: _cell(timing, timings) for timing in timings if (timing.model, timing.form) == (name, form)}
        rows.append((name, form, *(cells.get(setting, '') for setting in settings)))
    for name, reference in (references or {}).items():
        if {name, reference} <= models:
            speeds = ([_fastest(timings, model, setting).images_per_second for setting in settings] for model in (name, reference))
            rows.append((name, f'fastest / fastest of {reference}', *(f'{one / other:.2f}x' for one, other in zip(*speeds, strict=True))))
    for name, form in dict.fromkeys(key[:2] for key in memory or ()):
        sizes = (memory.get((name, form, setting)) for setting in settings)
        rows.append((name, f'{form}: MB at the peak of a pass', *('' if size is None else f'{size / 1e6:.0f}' for size in sizes)))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _cell(timing: Timing, timings: list[Timing]) -> str:
    low, high = (timing.batch_size / seconds for seconds in (max(timing.seconds), min(timing.seconds)))
    digits = 0 if low >= 100 else 1
    return f'{timing.images_per_second:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}) {ratio(timing, timings):.2f}x'


def _fastest(timings: Iterable[Timing], model: str, setting: str, forms: tuple[str, ...] = ()) -> Timing:
    """The fastest form of a model in a setting, among those named or all."""
    fitting = (timing for timing in timings if (timing.model, timing.setting) == (model, setting) and (not forms or timing.form in forms))
    return max(fitting, key=lambda timing: timing.images_per_second)


def host(device: str | torch.device = 'cpu') -> str:
    """The processor, and the versions of what computes on it."""
    device = torch.device(device)
    versions = f'torch {torch.__version__}, timm {timm.__version__}'
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, {versions}'
    cpuinfo = Path('/proc/cpuinfo')
    found = re.search(r'^model name\s*:\s*(.+)$', cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    processor = found[1] if found else platform.processor() or platform.machine()
    return f'{processor} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads, {versions}'


def _check(name: str) -> None:
    if not timm.is_model(name):
        raise ValueError(f'{name!r} is no model that timm knows; of this package there are {", ".join(timm.list_models("igc*"))}')


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
