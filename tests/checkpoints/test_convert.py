"""The authors' checkpoints: reading `.params`, renaming, and that the converted net computes what the authors' graph does."""
from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from params_files import (
    FLAGS,
    FORMATS,
    RELEASED,
    Net,
    igcv3_symbol,
    random_params,
    symbol,
    synthetic_params,
    write_params,
)
from symbol_graph import evaluate, parameter_shapes

from igczoo.checkpoints.convert import SOURCES, convert_checkpoint
from igczoo.checkpoints.convert.igc import CHECKPOINTS, IGC, REGULAR
from igczoo.checkpoints.convert.keys import key_table, to_state_dict
from igczoo.checkpoints.convert.mxnet import read_params
from igczoo.nets.families import build
from igczoo.nets.igcnet import VARIANTS, IGCNet

SYMBOLS = Path(os.environ.get('IGCZOO_SHARED', Path(__file__).parents[3] / 'shared')) / 'reference' / 'igc-symbols'
GRAPHS = {
    'igcnet18': 'L100M2-symbol.json',
    'igcnet18_l16m16': 'L16M16-symbol.json',
    'igcnet18_l4m32': 'L4M32-symbol.json',
    'igc_regconv18_c64': 'ResNet18-w64-symbol.json',
    'igc_regconv18_c69': 'ResNet18-w69-symbol.json',
}
# Bytes of the authors' files had each format been used, worked out apart from this code; theirs are LEGACY.
SIZES = {
    'igcnet18': (34679552, 34680984, 34681476),
    'igcnet18_l16m16': (54273656, 54275036, 54275508),
    'igcnet18_l4m32': (49088632, 49090012, 49090484),
    'igc_regconv18_c64': (46802116, 46803176, 46803584),
    'igc_regconv18_c69': (54216896, 54217956, 54218364),
}
# The two rules of the released nets and their regular twin, each small enough to run anywhere, with L != M throughout.
SMALL = {
    'L doubles, M = 2': (Net(3, (6, 12, 24, 48), (3, 6, 12, 24)), IGC),
    'L fixed, M doubles': (Net(10, (10, 20, 40, 80), (5, 5, 5, 5)), IGC),
    'regular': (Net(5, (5, 10, 20, 40)), REGULAR),
}


def to_bytes(arrays, fmt='LEGACY', **kwargs) -> bytes:
    file = io.BytesIO()
    write_params(file, arrays, fmt, **kwargs)
    return file.getvalue()


# The file format ----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {'float32': (2, 3), 'float64': (4,), 'float16': (1, 2, 3), 'uint8': (5, 1, 1, 2), 'int32': (7,), 'int8': (3,), 'int64': (2, 2)}
    assert shapes.keys() == FLAGS.keys()
    return {f'arg:{dtype}': (100 * rng.random(shape)).astype(dtype) for dtype, shape in shapes.items()} | {'aux:µ': np.ones(1, np.float32)}


@pytest.mark.parametrize('fmt', FORMATS)
def test_all_formats_are_read_exactly(arrays, fmt, tmp_path):
    write_params(tmp_path / 'x.params', arrays, fmt)
    for source in (tmp_path / 'x.params', str(tmp_path / 'x.params'), (tmp_path / 'x.params').read_bytes()):
        read = read_params(source)
        assert list(read) == list(arrays)
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize('fmt', FORMATS)
def test_the_device_does_not_matter(arrays, fmt):
    for name, array in read_params(to_bytes(arrays, fmt, device=(2, 5))).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_no_arrays():
    assert read_params(to_bytes({})) == {}


@pytest.mark.parametrize('name', SIZES)
def test_the_files_of_the_released_nets_have_their_size(name):
    class Counter:
        def write(self, data):
            self.size = getattr(self, 'size', 0) + memoryview(data).nbytes

    arrays = {key: np.empty(shape, np.float32) for key, shape in parameter_shapes(symbol(RELEASED[name])).items()}
    for fmt, size in zip(FORMATS, SIZES[name], strict=True):
        file = Counter()
        write_params(file, arrays, fmt)
        assert file.size == size


# One array 'arg:w' (2, 3) float32: what is written over it where, and the complaint. Its data are followed by 8 + 8 + 5 bytes of names.
@pytest.mark.parametrize('fmt, at, layout, value, complaint', [
    ('LEGACY', 0, 'Q', 0x113, r'byte 0: found header 0x113, 0x0, expected 0x112, 0x0 of an MXNet \.params file'),
    ('LEGACY', 8, 'Q', 1, r'byte 0: found header 0x112, 0x1, expected'),
    ('LEGACY', 16, 'Q', 0, r'byte 24: found 8589934594 names, expected 0, one for each array'),
    ('LEGACY', 16, 'Q', 2, r'byte 76: found shape \(0,\), expected positive dimensions'),
    ('LEGACY', 16, 'Q', 2**16, r'byte 76: found shape \(0,\), expected positive dimensions'),
    ('LEGACY', 16, 'Q', 2**16 + 1, r'byte 16: found 65537 arrays, expected at most 65536'),
    ('LEGACY', 24, 'I', 0, r'byte 24: found 0 dimensions \(0x0\), expected 1 to 32, or'),
    ('LEGACY', 24, 'I', 33, r'byte 24: found 33 dimensions \(0x21\), expected 1 to 32, or'),
    ('LEGACY', 24, 'I', 2**32 - 1, r'byte 24: found 4294967295 dimensions'),
    ('LEGACY', 24, 'I', 30, r'byte 28: found 65 bytes to the end of the file, expected 120 bytes of dimensions'),
    ('LEGACY', 28, 'I', 0, r'byte 28: found shape \(0, 3\), expected positive dimensions'),
    ('LEGACY', 28, 'I', 2**32 - 1, r'byte 48: found 45 bytes to the end of the file, expected 51539607540 bytes of elements of '),
    ('LEGACY', 44, 'i', 7, r'byte 44: found dtype flag 7, expected one of 0 \(float32\), 1 \(float64\)'),
    ('LEGACY', 44, 'i', -1, r'byte 44: found dtype flag -1, expected'),
    ('LEGACY', 44, 'i', 1, r'byte 48: found 45 bytes to the end of the file, expected 48 bytes of elements of an array of shape \(2, 3\)'),
    ('LEGACY', 72, 'Q', 0, r'byte 72: found 0 names, expected 1, one for each array'),
    ('LEGACY', 80, 'Q', 4, r'byte 92: found 1 more bytes, expected the end of the file after the last name'),
    ('LEGACY', 80, 'Q', 2**63, r'byte 88: found 5 bytes to the end of the file, expected 9223372036854775808 bytes of name'),
    ('LEGACY', 80, 'Q', 0, r"byte 88: found b'' as a name, expected printable text in UTF-8"),
    ('LEGACY', 88, 'B', 0xff, r"byte 88: found b'\\xffrg:w' as a name, expected printable text in UTF-8"),
    ('LEGACY', 88, 'B', 0x0a, r"byte 88: found b'\\nrg:w' as a name, expected printable text in UTF-8"),
    ('V1', 28, 'I', 0, r'byte 28: found 0 dimensions'),
    ('V1', 24, 'I', 0xF993FACA, r'byte 24: found 4187224778 dimensions \(0xf993faca\), expected 1 to 32, or the mark of a V1 or V2 array'),
    ('V1', 32, 'q', -1, r'byte 32: found shape \(-1, 3\), expected positive dimensions'),
    ('V1', 32, 'q', 2**63 - 1, r'byte 60: found 45 bytes to the end of the file, expected \d{21} bytes of elements'),
    ('V2', 28, 'i', 1, r'byte 28: found storage type 1, expected 0, dense; sparse arrays are not read'),
    ('V2', 28, 'i', -1, r'byte 28: found storage type -1, expected 0, dense'),
    ('V2', 32, 'I', 1000, r'byte 32: found 1000 dimensions'),
])
def test_corruption_is_named(tmp_path, fmt, at, layout, value, complaint):
    data = bytearray(to_bytes({'arg:w': np.ones((2, 3), np.float32)}, fmt))
    struct.pack_into('<' + layout, data, at, value)
    path = tmp_path / 'broken.params'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'broken\.params: ' + complaint) as error:
        read_params(path)
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='^params: ' + complaint):
        read_params(bytes(data))


@pytest.mark.parametrize('fmt', FORMATS)
def test_every_truncation_is_refused(arrays, fmt):
    data = to_bytes(arrays, fmt)
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r'byte \d+: found \d+ bytes to the end of the file, expected \d+ bytes of '):
            read_params(data[:size])


def test_trailing_bytes_are_refused(arrays):
    data = to_bytes(arrays)
    with pytest.raises(ValueError, match=rf'byte {len(data)}: found 3 more bytes, expected the end of the file'):
        read_params(data + b'\0\0\0')


def test_a_name_used_twice_is_refused():
    data = to_bytes({'arg:a': np.ones(1, np.float32), 'arg:b': np.ones(1, np.float32)})
    with pytest.raises(ValueError, match=rf"byte {len(data) - 5}: found 'arg:a' a second time, expected a name of its own"):
        read_params(data.replace(b'arg:b', b'arg:a'))


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent'):
        convert_checkpoint(tmp_path / 'absent.params', 'igcnet18')


def test_reading_takes_no_more_memory_than_the_file(tmp_path):
    write_params(tmp_path / 'x.params', {f'arg:{i}': np.ones((1 << 18, 1), np.float32) for i in range(4)})
    tracemalloc.start()
    read_params(tmp_path / 'x.params')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.05 * (tmp_path / 'x.params').stat().st_size


def read_within_bounds(data: bytes) -> None:
    """Either the arrays or a ValueError on one line, and never more memory than a small multiple of the file."""
    tracemalloc.start()
    try:
        arrays = read_params(data)
        assert sum(array.nbytes for array in arrays.values()) < len(data)
    except ValueError as error:
        assert '\n' not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 1024 + 16 * len(data)


FUZZ = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SAMPLE = {'arg:w': np.ones((2, 3), np.float32), 'aux:v': np.ones(4), 'arg:b': np.ones((1, 1, 2), np.uint8)}
SAMPLES = [to_bytes(SAMPLE, fmt) for fmt in FORMATS]
# Values that lengths and counts are often broken by
INTERESTING = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 64, 127, 128, 200, 254, 255]) | st.integers(0, 255)


@FUZZ
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 200), INTERESTING), min_size=1, max_size=8))
def test_changed_bytes_never_escape_the_reader(sample, changes):
    data = bytearray(sample)
    for at, value in changes:
        data[at % len(data)] = value
    read_within_bounds(bytes(data))


@FUZZ
@given(st.sampled_from(SAMPLES), st.integers(0, 200), st.integers(0, 40), st.binary(max_size=40))
def test_cut_and_spliced_files_never_escape_the_reader(sample, at, removed, inserted):
    read_within_bounds(sample[:at] + inserted + sample[at + removed:])


@FUZZ
@given(st.binary(max_size=300), st.sampled_from([b'', struct.pack('<QQ', 0x112, 0), struct.pack('<QQQ', 0x112, 0, 2**16)]))
def test_random_bytes_never_escape_the_reader(data, header):
    read_within_bounds(header + data)


# The key tables -----------------------------------------------------------------------------------------------------------------------

def small_model(net: Net) -> IGCNet:
    return IGCNet('imagenet', net.stem, net.widths, net.primary, (2, 2, 2, 2)).eval()


def small_case():
    net, modules = SMALL['L doubles, M = 2']
    return random_params(symbol(net), 0), modules, small_model(net)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_the_key_tables_are_one_to_one(name):
    model = IGCNet(**VARIANTS[name], device='meta')
    table = key_table(CHECKPOINTS[name], model)
    shapes = parameter_shapes(symbol(RELEASED[name]))
    assert table.keys() == shapes.keys()
    targets = model.state_dict()
    assert sorted(table.values()) == sorted(key for key in targets if not key.endswith('num_batches_tracked'))
    assert all(tuple(targets[ours].shape) == shapes[theirs] for theirs, ours in table.items())


def test_every_released_net_has_a_table():
    assert set(CHECKPOINTS) == set(GRAPHS) == set(RELEASED) == set(SIZES)


def test_a_table_that_leaves_a_tensor_out_or_fills_it_twice_is_refused():
    _, modules, model = small_case()
    with pytest.raises(ValueError, match=r'key table: left out: head\.(weight|bias), head\.(weight|bias); filled twice: $'):
        key_table(modules[:-1], model)
    with pytest.raises(ValueError, match=r'key table: left out: ; filled twice: stem\.conv\.weight$'):
        key_table([*modules, ('conv', 'again', 'stem.conv')], model)


def test_what_does_not_fit_is_listed_from_both_sides():
    arrays, modules, model = small_case()
    del arrays['arg:g0_bn_gamma'], arrays['aux:g4_b1_proj_bn_moving_var']
    arrays['arg:g5_conv_weight'] = np.ones(1, np.float32)
    arrays['arg:g1_b1_conv1_conv1_weight'] = np.ones((1, 6, 3, 3), np.float32)
    arrays['arg:g1_b1_conv1_conv2_weight'] = arrays['arg:g1_b1_conv1_conv2_weight'].astype(np.float64)
    arrays['arg:fc_score_bias'][17] = np.nan
    with pytest.raises(ValueError) as error:
        to_state_dict(arrays, modules, model)
    assert str(error.value) == (
        '2 missing: arg:g0_bn_gamma (for stem.bn.weight), aux:g4_b1_proj_bn_moving_var (for stages.3.0.shortcut.bn.running_var); '
        '1 left over: arg:g5_conv_weight; '
        '2 of another shape or dtype: '
        'arg:g1_b1_conv1_conv1_weight is float32 (1, 6, 3, 3) where stages.0.0.unit1.conv.primary.weight is float32 (6, 1, 3, 3), '
        'arg:g1_b1_conv1_conv2_weight is float64 (6, 3, 1, 1) where stages.0.0.unit1.conv.secondary.weight is float32 (6, 3, 1, 1); '
        '1 not finite: arg:fc_score_bias')


def test_each_missing_array_is_noticed():
    arrays, modules, model = small_case()
    for name in arrays:
        with pytest.raises(ValueError, match=rf'^1 missing: {name} \(for '):
            to_state_dict({key: array for key, array in arrays.items() if key != name}, modules, model)


def test_parameters_and_statistics_are_not_confused():
    arrays, modules, model = small_case()
    arrays['arg:g0_bn_moving_mean'] = arrays.pop('aux:g0_bn_moving_mean')
    with pytest.raises(ValueError, match=r'1 missing: aux:g0_bn_moving_mean .*; 1 left over: arg:g0_bn_moving_mean'):
        to_state_dict(arrays, modules, model)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    write_params(tmp_path / 'small.params', small_case()[0])
    with pytest.raises(ValueError, match=r'small\.params is not a checkpoint of igcnet18_l4m32: 5 left over: .* and 1 more; '
                                         r'117 of another shape or dtype: .* and 113 more$'):
        convert_checkpoint(tmp_path / 'small.params', 'igcnet18_l4m32')
    with pytest.raises(ValueError, match=r"no conversion to 'igcnet19' from mxnet; there is one to each of igcnet18, igcnet18_l16m16"):
        convert_checkpoint(tmp_path / 'small.params', 'igcnet19')


def test_the_state_dict_is_complete_and_unchanged():
    arrays, modules, model = small_case()
    state = to_state_dict(arrays, modules, model)
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state, strict=True)
    counters = [key for key in state if key.endswith('num_batches_tracked')]
    assert len(counters) == 21
    assert all(state[key].dtype == torch.int64 and state[key].item() == 0 for key in counters)
    for theirs, ours in key_table(modules, model).items():
        np.testing.assert_array_equal(state[ours].numpy(), arrays[theirs], strict=True)


def test_a_file_becomes_a_loadable_state_dict(tmp_path):
    arrays = synthetic_params('igcnet18')
    write_params(tmp_path / 'x.params', arrays)
    state = convert_checkpoint(tmp_path / 'x.params', 'igcnet18')
    model = IGCNet(**VARIANTS['igcnet18'], device='meta')
    model.load_state_dict(state, strict=True, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_637_900
    np.testing.assert_array_equal(model.stages[3][1].unit2.conv.secondary.weight.numpy(force=True), arrays['arg:g4_b2_conv2_conv2_weight'])


# The authors' graphs ------------------------------------------------------------------------------------------------------------------

def assert_same_network(model: IGCNet, graph: dict, arrays: dict[str, np.ndarray], batch: int) -> None:
    """From stem to logits, so that a failure names the first stage that differs."""
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stages = ['g0_relu', 'g1_b2_relu', 'g2_b2_relu', 'g3_b2_relu', 'g4_b2_relu']
    with torch.inference_mode():
        theirs = evaluate(graph, arrays, x, keep=[*stages, 'fc_score'])
        y, ours = model.double().forward_intermediates(x)
        ours = dict(zip(stages, ours, strict=True)) | {'fc_score': model.forward_head(y)}
    for node, expected in theirs.items():
        assert expected.std() > .01, node
        difference = (ours[node] - expected).abs().max() / expected.abs().max()
        assert difference < 1e-9, f'{node} differs by {difference:.1e} of its largest value'


def test_reorder_of_the_interpreter():
    x = torch.arange(6.).view(1, 6, 1, 1)
    graph = {'nodes': [{'op': 'null', 'param': {}, 'name': 'data', 'inputs': []},
                       {'op': 'Reorder', 'param': {'branch_factor': '2'}, 'name': 'y', 'inputs': [[0, 0]]}]}
    assert evaluate(graph, {}, x, ['y'])['y'].flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize('rule', SMALL)
def test_small_nets_compute_what_the_graph_does(rule):
    net, modules = SMALL[rule]
    graph = symbol(net)
    arrays = random_params(graph, seed=3)
    model = small_model(net)
    model.load_state_dict(to_state_dict(arrays, modules, model))
    assert_same_network(model, graph, arrays, batch=2)


def released_graph(name: str) -> dict:
    path = SYMBOLS / GRAPHS[name]
    if not path.exists():
        pytest.skip(f'the authors\' graph {GRAPHS[name]} is not in the shared folder')
    return json.loads(path.read_text())


@pytest.mark.parametrize('name', GRAPHS)
def test_the_graphs_made_here_are_the_released_ones(name):
    def described(graph):
        nodes = graph['nodes']
        return {node['name']: (node['op'], node['param'], [nodes[i]['name'] for i, _ in node['inputs']]) for node in nodes}

    made, released = described(symbol(RELEASED[name])), described(released_graph(name))
    assert made.keys() == released.keys()
    for node, (op, param, inputs) in made.items():
        released_op, released_param, released_inputs = released[node]
        assert (op, inputs) == (released_op, released_inputs)
        if op != 'SoftmaxOutput':
            execution = {'workspace', 'cudnn_off', 'cudnn_tune'}
            assert param == {key: value for key, value in released_param.items() if key not in execution}


def test_the_graph_of_igcv3_made_here_is_the_released_one():
    """Which ends at node 848, its last permutation being the 63rd of those that the authors' code computes."""
    made = igcv3_symbol()
    assert made['heads'] == [[848, 0, 0]] and any(node['name'] == 'swapaxes62' for node in made['nodes'])
    path = SYMBOLS.parent / 'igcv3-symbol.json'
    if not path.exists():
        pytest.skip('the authors\' graph igcv3-symbol.json is not in the shared folder')
    released = json.loads(path.read_text())['nodes']
    assert len(released) == len(made['nodes'])
    for node, theirs in zip(made['nodes'], released, strict=True):
        attr = {key: value for key, value in theirs.get('attr', {}).items() if key != '__init__'}
        assert (node['op'], node['name'], node['inputs'], node.get('attr', {})) == (theirs['op'], theirs['name'], theirs['inputs'], attr)


def test_the_key_table_of_igcv3_is_one_to_one():
    model = build('igcv3_100', device='meta')
    table, targets = key_table(SOURCES['mxnet'].models['igcv3_100'], model), model.state_dict()
    assert {theirs: tuple(targets[ours].shape) for theirs, ours in table.items()} == parameter_shapes(igcv3_symbol())
    assert sorted(table.values()) == sorted(key for key in targets if not key.endswith('num_batches_tracked')) and len(table) == 492


@pytest.mark.parametrize('name, fmt', list(zip(GRAPHS, ('LEGACY', 'V1', 'V2', 'LEGACY', 'LEGACY'), strict=True)))
def test_released_nets_compute_what_the_graph_does(name, fmt, tmp_path):
    graph = released_graph(name)
    arrays = random_params(graph, seed=4)
    write_params(tmp_path / 'released.params', arrays, fmt)
    model = IGCNet(**VARIANTS[name], device='meta').eval()
    model.load_state_dict(convert_checkpoint(tmp_path / 'released.params', name), strict=True, assign=True)
    assert_same_network(model, graph, arrays, batch=1)
