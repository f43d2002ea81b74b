"""Training steps a second of the grouped and the planar form, interleaved in one run: medians, images/s.

    python benchmarks/training.py [--model igc_resnet20_l24m2] [--size 32] [--batch-size 128] [--device cpu]
"""
import argparse
import statistics
import time

import timm
import torch
import torch.nn.functional as F

import igczoo  # noqa: F401  registers the models
from igczoo.planar import PlanarIGCNet

ROUNDS = 7


def make_step(model_name: str, planar: bool, channels_last: bool, bf16: bool, x: torch.Tensor, y: torch.Tensor):
    """One update of SGD on a fixed batch, as a function without arguments."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = timm.create_model(model_name).to(x.device, memory_format=memory_format).train()
    forward = PlanarIGCNet(net) if planar else net
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
    parser.add_argument('--model', default='igc_resnet20_l24m2')
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch_size, 3, arguments.size, arguments.size, device=arguments.device)
    y = torch.randint(10, (arguments.batch_size,), device=arguments.device)
    steps = {}
    for bf16 in (False, True):
        precision = 'bf16' if bf16 else 'fp32'
        steps[f'grouped, NCHW, {precision}'] = make_step(arguments.model, False, False, bf16, x, y)
        steps[f'grouped, channels_last, {precision}'] = make_step(arguments.model, False, True, bf16, x, y)
        steps[f'planar, {precision}'] = make_step(arguments.model, True, True, bf16, x, y)
    times = {name: [] for name in steps}
    for round_number in range(ROUNDS + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number:    # the first one warms up
                times[name].append(time.perf_counter() - started)
    print(f'{arguments.model}, {arguments.size} px, batch {arguments.batch_size}, torch {torch.__version__}, '
          f'{torch.get_num_threads()} threads')
    for name, values in times.items():
        print(f'{name:30} {arguments.batch_size / statistics.median(values):7.0f} images/s')


if __name__ == '__main__':
    main()
