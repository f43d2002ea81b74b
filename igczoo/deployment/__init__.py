"""An equal, faster model: its forms, the kernel they run in, its export to other engines, and its timing.

The room is not called `deploy`, for a submodule of that name would hide the function `igczoo.deploy`.
"""
from .. import nets  # noqa: F401  first, as nets/__init__.py says
from . import deploy  # noqa: F401  gives the nets' stages the method `fuse`
