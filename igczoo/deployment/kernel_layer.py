"""What the layers have in common that the kernel computes."""
from collections.abc import Callable

from torch import Tensor, nn

from . import kernels

__all__ = ['KernelLayer']


class KernelLayer(nn.Module):
    """A layer that the kernel computes. Where it is unpickled, or made of another type, the kernel for that is loaded if there is one."""

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._load_kernel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # In a row: of four axes `to(memory_format=...)` would change the order, which is the kernel's own, and at five it fails.
        super()._apply(lambda tensor: fn(tensor.flatten()).view(tensor.shape), recurse)
        self._load_kernel()
        return self

    def _load_kernel(self) -> None:
        for dtype in {parameter.dtype for parameter in self.parameters() if parameter.is_cpu} & kernels.C_TYPES.keys():
            kernels.load(build=False, dtype=dtype)
