"""Memory of the CPU: freed blocks stay with the process, and what a process has needed at most."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys

# The parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_TOP_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors, and say whether that could be done.

    glibc hands large blocks back to the system as soon as a tensor dies, and the next tensor's
    pages are then mapped and zeroed again one by one. On a CPU that may take more time than the
    arithmetic in between (docs/performance.md has figures). Here blocks of every size come from
    the heap, which grows in steps of 256 MiB and never shrinks, so that the process holds on to
    its peak until it ends; holes between live blocks add to that peak.

    To be called at the start of a program, before it makes large tensors. Other C libraries than
    glibc, also a preloaded one such as jemalloc, are left alone. What the user sets himself with
    glibc's ``MALLOC_*`` variables is overruled.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_MAX: 0,  # no block gets a mapping of its own, which would die with it
        _M_TRIM_THRESHOLD: -1,  # the heap is never trimmed
        _M_TOP_PAD: _TOP_PAD_BYTES,
    }
    # Not all(): every setting is to be tried.
    return sum(libc.mallopt(name, value) for name, value in settings.items()) == len(settings)


def peak_resident_bytes() -> int:
    """The most memory that this process has occupied so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
