"""Training steps of models as they are written and in the form that igczoo trains them in, interleaved in one run: medians.

    python benchmarks/training.py [--models igc_resnet20_l24m2 ...] [--size 32] [--num-classes 10] [--batch-size 128] [--device cpu]
                                  [--dtypes fp32 bf16] [--no-nchw] [--compile] [--rounds 7] [--json]
"""
import argparse
import copy
import json
import statistics
import time

import timm
import torch
import torch.nn.functional as F

import igczoo  # noqa: F401  registers the models
from igczoo.training.forms import as_written, planar_by_torch, training_form
from igczoo.training.memory import keep_freed_memory

FORMS = {
    'as written, NCHW': (torch.contiguous_format, as_written),
    'as written, channels_last': (torch.channels_last, as_written),
    'planar, by torch alone': (torch.channels_last, planar_by_torch),
    'by kernels': (torch.channels_last, training_form),
}
COMPILED = 'as written, channels_last', 'planar, by torch alone'


def make_steps(model_name: str, num_classes: int, nchw: bool, compile: bool, bf16: bool, x: torch.Tensor, y: torch.Tensor):
    """One update of SGD on a fixed batch in each form of a model: functions without arguments, by the forms' names."""
    net, steps = timm.create_model(model_name, num_classes=num_classes), {}
    for name, (memory_format, form) in FORMS.items():
        is_other = form is as_written or form(net, x.device) is not net
        if is_other and (nchw or memory_format == torch.channels_last):
            for compiled in (False, True)[:1 + (compile and name in COMPILED)]:
                steps[name + ', compiled' * compiled] = make_step(copy.deepcopy(net), memory_format, form, compiled, bf16, x, y)
    return steps


def make_step(net: torch.nn.Module, memory_format: torch.memory_format, form, compiled: bool, bf16: bool, x: torch.Tensor, y: torch.Tensor):
    net = net.to(x.device, memory_format=memory_format).train()
    forward = form(net, x.device)
    if compiled:
        forward.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x = x.contiguous(memory_format=memory_format)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--models', nargs='+', default=['igc_resnet20_l24m2'])
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--num-classes', type=int, default=10)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtypes', nargs='+', default=['fp32', 'bf16'], choices=['fp32', 'bf16'])
    parser.add_argument('--no-nchw', action='store_true', help='leave out the slowest form')
    parser.add_argument('--compile', action='store_true', help='also by torch.compile, which takes minutes to build')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--json', action='store_true', help="a list with every round's seconds")
    arguments = parser.parse_args()
    keep_freed_memory()     # as training does
    x = torch.randn(arguments.batch_size, 3, arguments.size, arguments.size, device=arguments.device)
    y = torch.randint(arguments.num_classes, (arguments.batch_size,), device=arguments.device)
    steps = {
        (model, form, dtype): step
        for model in arguments.models for dtype in arguments.dtypes
        for form, step in make_steps(model, arguments.num_classes, not arguments.no_nchw, arguments.compile, dtype == 'bf16',
                                     x, y).items()}
    times = {name: [] for name in steps}
    for round_number in range(arguments.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number:    # the first one warms up
                times[name].append(time.perf_counter() - started)
    if arguments.json:
        return print(json.dumps([dict(zip(('model', 'form', 'dtype'), key, strict=True), seconds=values) for key, values in times.items()]))
    print(f'{arguments.size} px, {arguments.num_classes} classes, batch {arguments.batch_size}, torch {torch.__version__}, '
          f'{torch.get_num_threads()} threads')
    for key, values in times.items():
        images_per_second = arguments.batch_size / statistics.median(values)
        print(f'{", ".join(key):55} {images_per_second:7.0f} images/s {1e5 / images_per_second:7.0f} s for 100,000')


if __name__ == '__main__':
    main()
