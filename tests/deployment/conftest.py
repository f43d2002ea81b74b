import pytest

from igczoo.deployment import kernels


@pytest.fixture(scope='session')
def compiled():
    for dtype in kernels.C_TYPES:
        if not kernels.load(build=True, dtype=dtype):
            pytest.skip(kernels.why_not())
