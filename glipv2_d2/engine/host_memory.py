"""Host memory of the process: keep freed blocks for reuse; measure the peak."""

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
    """Let the process keep freed memory for later tensors; return whether it succeeded.

    By default glibc returns large blocks to the system as soon as a tensor is freed, and the pages
    of the next tensor are mapped and zeroed again. On a CPU this may take longer than the
    arithmetic in between (figures in docs/performance.md). After this call, blocks of every size
    come from the heap, which grows in steps of 256 MiB and never shrinks: the process keeps its
    peak until it ends, and gaps between live blocks add to that peak.

    Call it at the start of a program, before large tensors are allocated. It overrides glibc's
    ``MALLOC_*`` variables. C libraries other than glibc, including a preloaded one such as
    jemalloc, are not changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        _M_MMAP_MAX: 0,  # no block gets its own mapping, which would be unmapped with it
        _M_TRIM_THRESHOLD: -1,  # the heap is never trimmed
        _M_TOP_PAD: _TOP_PAD_BYTES,
    }
    # Not all(), which would stop at the first failure.
    return sum(libc.mallopt(name, value) for name, value in settings.items()) == len(settings)


def peak_resident_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
