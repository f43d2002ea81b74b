"""What `bench` reports: every form of every model, each computing the same, in every setting, and figures that follow from the times.

No test here looks at how long anything took.
"""
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch

from igczoo.deployment import bench as package
from igczoo.deployment.bench import Timing, bench, candidates, host, peak_memory, ratio, table
from igczoo.deployment.deploy import deploy, forms_used

BENCHMARK = Path(__file__).parents[2] / 'benchmarks' / 'inference.py'
TIMINGS = [     # images/s: plain 2 and 4, deployed 8; the other 16
    Timing('igcnet18', 'plain, NCHW', 'float32', 1, (224, 224), (.4, .5, .6), {}),
    Timing('igcnet18', 'plain, channels_last', 'float32', 1, (224, 224), (.2, .25, 1.), {}),
    Timing('igcnet18', 'deployed', 'float32', 1, (224, 224), (.125, .1, .125), {'stages.0': 'planar'}),
    Timing('resnet18', 'plain, NCHW', 'float32', 1, (224, 224), (.0625,) * 3, {}),
    Timing('resnet18', 'plain, channels_last', 'float32', 1, (224, 224), (.1,) * 3, {}),
    Timing('igcnet18', 'plain, NCHW', 'float32', 1000, (224, 224), (1., 1.), {}),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Nets of three blocks, each run once for a measurement, and none for the choice of a form."""
    monkeypatch.setattr(package, 'LEAST', 0.)
    monkeypatch.setattr(package, '_create', lambda name, x: timm.create_model(name, depths=(1, 1, 1)).to(x.device, x.dtype).eval())
    monkeypatch.setattr(package, 'deploy', lambda model, example=None, portable=False: deploy(model, portable=portable))


@torch.inference_mode()
def test_every_form_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model('igc_resnet20_l24m2', depths=(1, 1, 1)).eval()
    monkeypatch.setattr(package, '_create', lambda name, x: model)
    monkeypatch.setattr(package, 'deploy', deploy)
    x = torch.randn(2, 3, 32, 32)
    found = {candidate.form: candidate for candidate in candidates('igc_resnet20_l24m2', x, int8=True)}
    package._onnx.cache_clear()
    assert {'plain, NCHW', 'plain, channels_last', 'deployed'} <= found.keys()
    exported = all(map(importlib.util.find_spec, ('onnxruntime', 'onnxscript')))
    assert ('ONNX Runtime' in found) == ('ONNX Runtime, int8' in found) == exported
    expected = model(x)
    if exported:
        int8 = found.pop('ONNX Runtime, int8').run()
        assert 1e-4 < (int8 - expected).abs().max() / expected.std() < 1
    for candidate in found.values():
        assert ((candidate.run() - expected).abs().max() / expected.std()) < 1e-4, candidate.form
    assert found['deployed'].layers == forms_used(deploy(model)) and not found['plain, NCHW'].layers
    chosen = [candidate.layers for form, candidate in found.items() if form.startswith('deployed')]
    assert all(layers not in chosen[:i] for i, layers in enumerate(chosen))


def test_every_model_in_every_setting():
    found = bench(['igc_resnet20_l4m8', 'igc_regconv20_w16'], 16, (1, 2), (torch.float32, torch.bfloat16), onnx=False, rounds=3)
    for name in ('igc_resnet20_l4m8', 'igc_regconv20_w16'):
        for form in ('plain, NCHW', 'plain, channels_last', 'deployed'):
            settings = [timing.setting for timing in found if (timing.model, timing.form) == (name, form)]
            assert settings == ['float32, batch 1', 'float32, batch 2', 'bfloat16, batch 1', 'bfloat16, batch 2']
    assert all(len(timing.seconds) == 3 and min(timing.seconds) > 0 for timing in found)


def test_the_candidates_take_turns():
    """The first calls warm up and are not counted."""
    calls = []
    found = package._in_turns([lambda name=name: calls.append(name) for name in 'ab'], 2, torch.device('cpu'), 'test')
    assert len(found) == 2 and all(len(seconds) == 2 for seconds in found)
    assert ''.join(calls) == 'aaabbb' + 'abab'


def test_ratios_are_against_the_faster_plain_form():
    assert [ratio(timing, TIMINGS) for timing in TIMINGS] == pytest.approx([.5, 1, 2, 1, .625, 1])


def test_the_table():
    memory = {('igcnet18', 'deployed', 'float32, batch 1'): 5_300_000}
    assert table([*TIMINGS[:5]], {'igcnet18': 'resnet18', 'igcv3_100': 'resnet18'}, memory) == '\n'.join([
        '| model | form | float32, batch 1 |',
        '| --- | --- | ---: |',
        '| igcnet18 | plain, NCHW | 2.0 (1.7 to 2.5) 0.50x |',
        '| igcnet18 | plain, channels_last | 4.0 (1.0 to 5.0) 1.00x |',
        '| igcnet18 | deployed | 8.0 (8.0 to 10.0) 2.00x |',
        '| resnet18 | plain, NCHW | 16.0 (16.0 to 16.0) 1.00x |',
        '| resnet18 | plain, channels_last | 10.0 (10.0 to 10.0) 0.62x |',
        '| igcnet18 | fastest / fastest of resnet18 | 0.50x |',
        '| igcnet18 | deployed: MB at the peak of a pass | 5 |'])
    assert '| igcnet18 | plain, NCHW | 2.0 (1.7 to 2.5) 0.50x | 1000 (1000 to 1000) 1.00x |' in table([TIMINGS[i] for i in (0, 1, 5)])


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the system does not say how much memory a process used at most')
def test_peak_memory():
    """The three largest maps of a batch of 64, (48, 32, 32) float32, must be held at once."""
    maps = 3 * 64 * 48 * 32 * 32 * 4
    peaks = peak_memory('igc_resnet20_l24m2', 'plain, channels_last', None, (1, 64), torch.float32)
    assert peaks.keys() == {1, 64} and 0 <= peaks[1] < maps < peaks[64] < 10 * maps


def test_the_host_is_described():
    assert f'{torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}' in host()


@pytest.mark.parametrize('arguments, message', [
    (dict(models=['igcnet19']), "'igcnet19' is no model that timm knows; of this package there are igc_plain20_l24m2, "),
    (dict(models=['igcnet18'], device='gpu'), "device is 'gpu'"), (dict(models=['igcnet18'], dtypes=[torch.int8]), 'dtype is torch.int8')])
def test_what_cannot_be_measured(arguments, message):
    with pytest.raises(ValueError) as caught:
        bench(**arguments)
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


def test_the_benchmark_prints_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [
        str(BENCHMARK), '--models', 'igc_resnet20_l4m8', '--against', 'igc_regconv20_w16', '--dtypes', 'float32', '--batch-sizes', '1',
        '--rounds', '1', '--size', '16', '--no-onnx', '--no-memory'])
    runpy.run_path(str(BENCHMARK), run_name='__main__')
    out = capsys.readouterr().out
    assert out.startswith(host()) and '| igc_resnet20_l4m8 | deployed | ' in out
    assert '| igc_resnet20_l4m8 | fastest / fastest of igc_regconv20_w16 | ' in out
