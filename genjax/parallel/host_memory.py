"""How the C library treats the memory of a process that computes on the CPU.

XLA's CPU backend allocates the scratch space of a program, a hundred megabytes for a small network, anew at each
execution. glibc gives blocks of that size back to the kernel when they are freed, so that each step would touch fresh
pages, which the kernel has to zero one by one: a quarter and more of the time of a small step. Kept, they are reused.
"""

import ctypes
import sys

import jax

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process, for good; whether it was done: only for the CPU backend, on glibc."""
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return mallopt is not None and sum(mallopt(name, value) for name, value in settings.items()) == len(settings)
