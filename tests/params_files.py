"""The authors' ImageNet networks as MXNet graphs, random checkpoints of them, and a writer of `.params` files.

Written from the published graphs and from the file format, not from igczoo.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from symbol_graph import parameter_shapes

FORMATS = ('LEGACY', 'V1', 'V2')
FLAGS = {'float32': 0, 'float64': 1, 'float16': 2, 'uint8': 3, 'int32': 4, 'int8': 5, 'int64': 6}


# Files --------------------------------------------------------------------------------------------------------------------------------

def write_params(file: BinaryIO | Path, arrays: dict[str, np.ndarray], fmt: str = 'LEGACY', device: tuple[int, int] = (1, 0)) -> None:
    """What mx.nd.save wrote before 0.11 (LEGACY), in 0.11 (V1), and from 0.12 on (V2); ``device`` (1, 0) is cpu(0)."""
    if isinstance(file, Path):
        with open(file, 'wb') as opened:
            return write_params(opened, arrays, fmt, device)
    file.write(struct.pack('<QQQ', 0x112, 0, len(arrays)))
    for array in arrays.values():
        ndim = array.ndim
        if fmt == 'LEGACY':
            file.write(struct.pack(f'<I{ndim}I', ndim, *array.shape))
        elif fmt == 'V1':
            file.write(struct.pack(f'<II{ndim}q', 0xF993FAC8, ndim, *array.shape))
        else:
            file.write(struct.pack(f'<IiI{ndim}q', 0xF993FAC9, 0, ndim, *array.shape))
        file.write(struct.pack('<iii', *device, FLAGS[array.dtype.name]))
        file.write(np.ascontiguousarray(array).data)
    file.write(struct.pack('<Q', len(arrays)))
    for name in arrays:
        file.write(struct.pack('<Q', len(name.encode())) + name.encode())


# Networks -----------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Net:
    """Channels of the stem and of each stage, and the primary partitions of each stage (None: a regular ResNet)."""
    stem: int
    widths: tuple[int, ...]
    primary: tuple[int, ...] | None = None


RELEASED = {
    'igcnet18':          Net(100, (200, 400, 800, 1600), (100, 200, 400, 800)),
    'igcnet18_l16m16':   Net(256, (256, 512, 1024, 2048), (16, 16, 16, 16)),
    'igcnet18_l4m32':    Net(128, (128, 256, 512, 1024), (4, 4, 4, 4)),
    'igc_regconv18_c64': Net(64, (64, 128, 256, 512)),
    'igc_regconv18_c69': Net(69, (69, 138, 276, 552)),
}


class _Symbol:
    """A graph in the making; its methods append a node each and return its index."""

    def __init__(self):
        self.nodes: list[dict] = []

    def add(self, op: str, name: str, *inputs: int, **param: str) -> int:
        self.nodes.append({'op': op, 'param': param, 'name': name, 'inputs': [[i, 0] for i in inputs], 'backward_source_id': -1})
        return len(self.nodes) - 1

    def variable(self, name: str) -> int:
        return self.add('null', name)

    def conv(self, x: int, name: str, width: int, kernel: int, stride: int = 1, groups: int = 1) -> int:
        pad = kernel // 2
        return self.add(
            'Convolution', name, x, self.variable(f'{name}_weight'), num_filter=f'{width}', num_group=f'{groups}', no_bias='True',
            kernel=f'({kernel},{kernel})', stride=f'({stride},{stride})', pad=f'({pad},{pad})', dilate='(1,1)')

    def bn(self, x: int, name: str) -> int:
        return self.add(
            'BatchNorm', name, x, self.variable(f'{name}_gamma'), self.variable(f'{name}_beta'),
            eps='2e-005', momentum='0.9', fix_gamma='False', use_global_stats='False')

    def relu(self, x: int, name: str) -> int:
        return self.add('Activation', name, x, act_type='relu')

    def pool(self, x: int, name: str, pool_type: str, kernel: int, stride: int, pad: int) -> int:
        return self.add('Pooling', name, x, pool_type=pool_type, global_pool='False', kernel=f'({kernel},{kernel})',
                        stride=f'({stride},{stride})', pad=f'({pad},{pad})')

    def unit(self, x: int, name: str, width: int, primary: int | None, stride: int) -> int:
        if primary is None:
            return self.bn(self.conv(x, name, width, 3, stride), f'{name}_bn')
        secondary = width // primary
        x = self.conv(x, f'{name}_conv1', width, 3, stride, primary)
        x = self.add('Reorder', f'{name}_reorder1', x, branch_factor=f'{primary}')
        x = self.conv(x, f'{name}_conv2', width, 1, 1, secondary)
        x = self.add('Reorder', f'{name}_reorder2', x, branch_factor=f'{secondary}')
        return self.bn(x, f'{name}_bn')


def symbol(net: Net) -> dict:
    """The graph of an 18-layer net for 224-pixel images and 1000 classes, as the authors' symbol JSON."""
    graph = _Symbol()
    first = 'g0' if net.primary is None else 'g0_conv'
    x = graph.relu(graph.bn(graph.conv(graph.variable('data'), first, net.stem, 7, 2), 'g0_bn'), 'g0_relu')
    x = graph.pool(x, 'g0_pool', 'max', 3, 2, 1)
    in_width, additions = net.stem, 0
    for s, width in enumerate(net.widths):
        primary = net.primary and net.primary[s]
        for b in (1, 2):
            block, stride = f'g{s + 1}_b{b}', 2 if s and b == 1 else 1
            shortcut = x
            if in_width != width:
                proj = f'{block}_proj' if primary is None else f'{block}_proj_conv'
                shortcut = graph.bn(graph.conv(x, proj, width, 1, stride, primary or 1), f'{block}_proj_bn')
            x = graph.relu(graph.unit(x, f'{block}_conv1', width, primary, stride), f'{block}_conv1_relu')
            x = graph.unit(x, f'{block}_conv2', width, primary, 1)
            x = graph.relu(graph.add('_Plus', f'_plus{additions}', shortcut, x), f'{block}_relu')
            in_width, additions = width, additions + 1
    x = graph.add('Flatten', 'flatten', graph.pool(x, 'global_pool', 'avg', 7, 1, 0))
    x = graph.add('FullyConnected', 'fc_score', x, graph.variable('fc_score_weight'), graph.variable('fc_score_bias'),
                  num_hidden='1000', no_bias='False')
    head = graph.add('SoftmaxOutput', 'softmax', x, graph.variable('softmax_label'))
    return {'nodes': graph.nodes, 'heads': [[head, 0]]}


class _Symbol2018(_Symbol):
    """Likewise as MXNet 1.1 writes it: a node's settings are its "attr", and a BatchNorm has its statistics as inputs."""

    def add(self, op: str, name: str, *inputs: int, **attr: str) -> int:
        statistics = [self.nodes[i]['name'].endswith(('_moving_mean', '_moving_var')) for i in inputs]
        self.nodes.append({'op': op, 'name': name, 'inputs': [[i, 0, int(aux)] for i, aux in zip(inputs, statistics, strict=True)]}
                          | ({'attr': attr} if attr else {}))
        return len(self.nodes) - 1

    def layer(self, x: int, prefix: str, width: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> int:
        """A convolution, its BatchNorm, and a ReLU6 where ``act``."""
        settings = dict(kernel=f'({kernel}, {kernel})', no_bias='True', num_filter=f'{width}', num_group=f'{groups}',
                        pad=f'({kernel // 2}, {kernel // 2})', stride=f'({stride}, {stride})')
        x = self.add('Convolution', f'{prefix}-conv2d', x, self.add('null', f'{prefix}-conv2d_weight', **settings), **settings)
        settings = dict(eps='1e-05', fix_gamma='False', use_global_stats='False')
        names = (f'{prefix}-batchnorm_{tensor}' for tensor in ('gamma', 'beta', 'moving_mean', 'moving_var'))
        tensors = [self.add('null', name, **settings) for name in names]
        x = self.add('BatchNorm', f'{prefix}-batchnorm', x, *tensors, **settings)
        return self.add('clip', f'{prefix}-relu6', x, a_max='6', a_min='0') if act else x


# IGCV3-D: expansion, channels, units and stride of each sequence
IGCV3 = (1, 16, 1, 1), (6, 24, 4, 2), (6, 32, 6, 2), (6, 64, 8, 2), (6, 96, 6, 1), (6, 160, 6, 2), (6, 320, 1, 1)


def igcv3_symbol() -> dict:
    """The graph of models/igcv3-symbol.json, whose permutations are numbered with those that the authors' code computed and dropped."""
    graph, number = _Symbol2018(), 0
    x = graph.layer(graph.variable('data'), 'first-3x3-conv', 32, 3, 2)
    in_width = 32
    for i, (expansion, width, units, stride) in enumerate(IGCV3):
        for j in range(units):
            block, shortcut, wide = f'seq-{i}-block{j}', x, in_width * expansion
            x = graph.layer(x, f'{block}-exp', wide, 1, groups=2, act=False)
            x = graph.add('Reshape', f'reshape{4 * number}', x, shape='(0, -4, 2, -1, -2)')
            x = graph.add('SwapAxis', f'swapaxes{2 * number}', x, dim1='1', dim2='2')
            x = graph.add('Reshape', f'reshape{4 * number + 1}', x, shape='(0, -3, -2)')
            x = graph.layer(x, f'{block}-depthwise', wide, 3, 1 if j else stride, groups=wide)
            x = graph.layer(x, f'{block}-linear', width, 1, groups=2, act=False)
            x = graph.add('elemwise_add', f'{block}-shortcut', shortcut, x) if j else x
            in_width, number = width, number + 1
    x = graph.layer(x, 'last-1x1-conv', 1280, 1)
    x = graph.add('Pooling', 'global_pool', x, global_pool='True', kernel='(7, 7)', pool_type='avg', stride='(1, 1)')
    x = graph.add('Flatten', 'flatten', x)
    settings = dict(num_hidden='1000')
    tensors = [graph.add('null', name, **settings) for name in ('fc_weight', 'fc_bias')]
    x = graph.add('FullyConnected', 'fc', x, *tensors, **settings)
    head = graph.add('SoftmaxOutput', 'softmax', x, graph.variable('softmax_label'))
    return {'nodes': graph.nodes, 'heads': [[head, 0, 0]]}


def released_symbol(model_name: str) -> dict:
    """The graph of one of the authors' checkpoints."""
    return igcv3_symbol() if model_name == 'igcv3_100' else symbol(RELEASED[model_name])


# Checkpoints --------------------------------------------------------------------------------------------------------------------------

def random_params(graph: dict, seed: int) -> dict[str, np.ndarray]:
    """Random float32 values for all a checkpoint of ``graph`` holds, parameters and statistics mixed in no order, as real files are."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(graph)
    return {name: _random(name, shapes[name], rng) for name in rng.permutation(list(shapes)).tolist()}


def synthetic_params(model_name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """`random_params` with the names and shapes of one of the authors' checkpoints."""
    return random_params(released_symbol(model_name), seed)


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith(('_gamma', '_moving_var')):
        return rng.uniform(.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(-.5, .5, shape).astype(np.float32)
    fan_in = np.prod(shape[1:])
    return rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** .5)
