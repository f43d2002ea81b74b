"""torch.hub, from a checkout and from a zip as torch.hub unpacks it, without a network."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOAD = '''
import torch
torch.set_num_threads(1)
net = torch.hub.load({folder!r}, {entry!r}, source='local', {arguments})
print(type(net).__name__, sum(p.numel() for p in net.parameters()), tuple(net.eval()(torch.zeros(1, 3, 32, 32)).shape))
'''


def load(folder: Path, entry: str, arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    code = LOAD.format(folder=str(folder), entry=entry, arguments=arguments)
    environment = {'HF_HUB_OFFLINE': '1', 'PATH': ''}
    return subprocess.run([sys.executable, '-I', '-c', code], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """What torch.hub makes of a repository's zip: the committed files, without .git."""
    folder = tmp_path_factory.mktemp('hub') / 'owner_igczoo_main'
    folder.mkdir()
    list_files = ['git', 'ls-files', '-z', 'igczoo', 'weights', 'hubconf.py']
    files = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True).stdout
    for name in files.decode().split('\0')[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.parametrize(('arguments', 'params', 'classes'), [
    ('pretrained=True', 157498, 10),
    ('pretrained=True, num_classes=3', 156147, 3),
    ('depth=26, primary=24, secondary=2, num_classes=7', 210679, 7),
])
def test_igc_resnet(clone, tmp_path, arguments, params, classes):
    result = load(clone, 'igc_resnet', arguments, tmp_path)
    assert result.stdout == f'IGCNet {params} (1, {classes})\n', result.stderr


def test_other_entries(clone, tmp_path):
    assert load(clone, 'igc_regconv20_w16', '', tmp_path).stdout == 'IGCNet 272474 (1, 10)\n'
    failed = load(clone, 'igc_resnet', 'depth=26, pretrained=True', tmp_path)
    assert failed.returncode == 1 and 'igc_resnet26_l24m2 has no weights; use pretrained=False, or one of ' in failed.stderr


def test_every_model_has_an_entry():
    code = 'import hubconf, timm; print(set(timm.list_models("igc*")) - set(dir(hubconf)), callable(hubconf.igc_resnet))'
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == 'set() True\n', result.stderr
