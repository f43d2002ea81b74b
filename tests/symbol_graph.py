"""An interpreter of MXNet's symbol JSON: shapes of the parameters, and inference in float64.

Of the files of 2016 (before NNVM: a node has its "param") and of 2018 (a node has its "attr", and a BatchNorm its statistics as inputs).

It is what conversions are checked against, so it shares nothing with igczoo.
"""
from __future__ import annotations

import ast
import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def evaluate(graph: dict, params: dict[str, np.ndarray], data: Tensor, keep: Collection[str]) -> dict[str, Tensor]:
    """The outputs of the nodes named in ``keep`` for the input ``data``, in its dtype."""
    nodes = graph['nodes']
    last_use = {j: i for i, node in enumerate(nodes) for j, *_ in node['inputs']}
    values: dict[int, Tensor | None] = {}
    for i, node in enumerate(nodes):
        name, inputs = node['name'], [values[j] for j, *_ in node['inputs']]
        if node['op'] == 'null':
            values[i] = data if name == 'data' else None if name == 'softmax_label' else _tensor(params, _key(name), data)
            continue
        if node['op'] == 'BatchNorm' and len(inputs) == 3:
            inputs += [_tensor(params, f'aux:{name}_moving_mean', data), _tensor(params, f'aux:{name}_moving_var', data)]
        values[i] = OPERATORS[node['op']](_settings(node), *inputs)
        for j, *_ in node['inputs']:
            if last_use[j] == i and nodes[j]['name'] not in keep:
                values[j] = None
    return {node['name']: values[i] for i, node in enumerate(nodes) if node['name'] in keep}


def parameter_shapes(graph: dict, data: tuple[int, int, int, int] = (1, 3, 224, 224)) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything a checkpoint of the graph holds, in the order of the graph, for input of shape ``data``."""
    nodes = graph['nodes']
    outputs: list[tuple[int, ...]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for node in nodes:
        param, name = _settings(node), node['name']
        x = outputs[node['inputs'][0][0]] if node['inputs'] else data
        own = {nodes[j]['name'].removeprefix(f'{name}_'): f'arg:{nodes[j]["name"]}' for j, *_ in node['inputs'][1:]}
        if node['op'] == 'Convolution':
            width = int(param['num_filter'])
            shapes[own['weight']] = (width, x[1] // int(param['num_group']), *_pair(param['kernel']))
            x = (x[0], width, *_window(x, param))
        elif node['op'] == 'Pooling':
            x = (*x[:2], *((1, 1) if param['global_pool'] == 'True' else _window(x, param)))
        elif node['op'] == 'BatchNorm':
            shapes |= dict.fromkeys((own['gamma'], own['beta'], f'aux:{name}_moving_mean', f'aux:{name}_moving_var'), (x[1],))
        elif node['op'] == 'Flatten':
            x = (x[0], math.prod(x[1:]))
        elif node['op'] == 'FullyConnected':
            classes = int(param['num_hidden'])
            shapes |= {own['weight']: (classes, x[1]), own['bias']: (classes,)}
            x = (x[0], classes)
        outputs.append(x)
    return shapes


def _settings(node: dict) -> dict[str, str]:
    return node.get('param', node.get('attr', {}))


def _key(name: str) -> str:
    return f'aux:{name}' if name.endswith(('_moving_mean', '_moving_var')) else f'arg:{name}'


def _tensor(params: dict[str, np.ndarray], name: str, like: Tensor) -> Tensor:
    return torch.from_numpy(params[name]).to(like.dtype)


def _pair(text: str) -> tuple[int, int]:
    return ast.literal_eval(text)


def _window(x: tuple[int, ...], param: dict) -> list[int]:
    """Height and width after a convolution or pooling: 1 + (size + 2 * pad - kernel) // stride."""
    sizes = zip(x[2:], _pair(param['kernel']), _pair(param['pad']), _pair(param['stride']), strict=True)
    return [1 + (size + 2 * pad - kernel) // stride for size, kernel, pad, stride in sizes]


def _convolution(param: dict, x: Tensor, weight: Tensor) -> Tensor:
    if param['no_bias'] != 'True' or tuple(weight.shape[2:]) != _pair(param['kernel']) or len(weight) != int(param['num_filter']):
        raise ValueError(f'convolution of weight {tuple(weight.shape)}: {param}')
    names = dict(stride='stride', padding='pad', dilation='dilate')
    settings = {key: _pair(param[name]) for key, name in names.items() if name in param}
    return F.conv2d(x, weight, groups=int(param['num_group']), **settings)


def _batch_norm(param: dict, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if param['fix_gamma'] == 'True':
        gamma = torch.ones_like(gamma)
    channels = (1, -1, 1, 1)
    normal = (x - mean.view(channels)) / (var + float(param['eps'])).sqrt().view(channels)
    return gamma.view(channels) * normal + beta.view(channels)


def _activation(param: dict, x: Tensor) -> Tensor:
    if param['act_type'] != 'relu':
        raise ValueError(f'activation {param}')
    return x.clamp(min=0)


def _pooling(param: dict, x: Tensor) -> Tensor:
    if param['global_pool'] == 'True' and param['pool_type'] == 'avg':
        return x.mean((2, 3), keepdim=True)
    kernel, stride, pad = (_pair(param[name]) for name in ('kernel', 'stride', 'pad'))
    fill = {'max': -math.inf, 'avg': 0.}[param['pool_type']]
    x = F.pad(x, (pad[1], pad[1], pad[0], pad[0]), value=fill)
    windows = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])     # (N, C, H', W', kernel height, kernel width)
    return windows.amax((-2, -1)) if param['pool_type'] == 'max' else windows.mean((-2, -1))


def _reorder(param: dict, x: Tensor) -> Tensor:
    """src/reorder-inl.h: with B branches of C / B channels, out[j * B + i] = in[i * (C / B) + j]."""
    branches, size = int(param['branch_factor']), x.shape[1] // int(param['branch_factor'])
    source = [-1] * x.shape[1]
    for i in range(branches):
        for j in range(size):
            source[j * branches + i] = i * size + j
    return x[:, source]


def _clip(param: dict, x: Tensor) -> Tensor:
    return x.clamp(float(param['a_min']), float(param['a_max']))


def _reshape(param: dict, x: Tensor) -> Tensor:
    """MXNet's codes: 0 keeps a dimension, -2 keeps all that are left, -3 joins two, -4 splits one as the next two say."""
    codes, sizes, shape = list(ast.literal_eval(param['shape'])), list(x.shape), []
    while codes:
        code = codes.pop(0)
        if code == 0:
            shape.append(sizes.pop(0))
        elif code == -2:
            shape, sizes = shape + sizes, []
        elif code == -3:
            shape.append(sizes.pop(0) * sizes.pop(0))
        elif code == -4:
            first, second, size = codes.pop(0), codes.pop(0), sizes.pop(0)
            shape += [first, size // first] if second == -1 else [size // second, second]
        else:
            raise ValueError(f'reshape {param}')
    return x.reshape(shape)


def _swap_axis(param: dict, x: Tensor) -> Tensor:
    return x.transpose(int(param['dim1']), int(param['dim2']))


def _plus(param: dict, *terms: Tensor) -> Tensor:
    return sum(terms[1:], start=terms[0])


def _fully_connected(param: dict, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


OPERATORS = {
    'Convolution': _convolution, 'BatchNorm': _batch_norm, 'Activation': _activation, 'Pooling': _pooling, 'Reorder': _reorder,
    '_Plus': _plus, '_plus': _plus, 'elemwise_add': _plus, 'clip': _clip, 'Reshape': _reshape,
    'SwapAxis': _swap_axis, 'ElementWiseSum': _plus, 'Flatten': lambda param, x: x.flatten(1),
    'FullyConnected': _fully_connected, 'SoftmaxOutput': lambda param, x, label: x.softmax(1),
}
