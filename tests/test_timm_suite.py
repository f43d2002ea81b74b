"""timm's own tests/test_models.py, from the source distribution of the installed version, on every model here; nothing excluded."""
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def timm_source(tmp_path_factory) -> Path:
    """The unpacked source distribution; IGCZOO_TIMM_SDIST may name one that is already there."""
    folder = tmp_path_factory.mktemp('timm')
    if not (sdist := os.environ.get('IGCZOO_TIMM_SDIST')):
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm', f'timm=={timm.__version__}']
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if fetched.returncode:
            pytest.skip(f'the source distribution of timm {timm.__version__} cannot be had: {fetched.stderr.strip()[-200:]}')
        sdist = next(folder.glob('timm-*.tar.gz'))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter='data')
    return folder / f'timm-{timm.__version__}'


@pytest.mark.timm_suite
def test_timm_suite_passes(timm_source):
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'timm_plugin', '-p', 'no:cacheprovider', '-k', 'igc', 'tests/test_models.py']
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
    result = subprocess.run(command, cwd=timm_source, env=os.environ | dict(PYTHONPATH=path), capture_output=True, text=True)
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert ' passed' in result.stdout.splitlines()[-1]
