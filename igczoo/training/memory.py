"""glibc's allocator, told to keep what training frees at every step: the page faults of asking again cost up to a third of a step."""
import ctypes
import sys

__all__ = ['keep_freed_memory']

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3     # malloc.h


def keep_freed_memory() -> None:
    """From now on blocks below 1 GiB come from memory that this process keeps; where the C library is another, nothing changes."""
    if not sys.platform.startswith('linux'):
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
