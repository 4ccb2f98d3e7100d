"""The memory allocator of the process."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt keys: hand large blocks back to the system only beyond these sizes, and let all
# threads share one arena, since those of other threads are handed back regardless.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let glibc reuse the batch-sized tensors of the last step.

    By default it returns blocks of this size to the kernel, and half the time of a training step
    on a CPU goes into having them zeroed again. Elsewhere than on Linux with glibc nothing happens.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_ARENA_MAX, 1)
