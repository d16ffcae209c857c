"""How the C library hands out large blocks of host memory to a program that computes on the CPU."""

import ctypes
import os
import sys

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20


def keep_large_blocks(environment=os.environ) -> bool:
    """Let this process keep and reuse freed memory instead of returning every large block to the system.

    By default glibc maps each block above a threshold (at most 32 MiB) from the system and unmaps it when it is freed. A training step allocates
    activations of that size again and again, and the kernel clears every page of them anew; page faults then take up to a third of the time on CPUs. Here
    large blocks come from the heap, which is never trimmed: the process keeps the memory of its largest step, which the next step needs anyway.

    It changes nothing for GPU memory, forked children inherit it, and whoever set glibc's own variables keeps their choice.

    Returns:
        Whether it was done: only with glibc on Linux, and not where ``MALLOC_*`` or ``GLIBC_TUNABLES`` are set.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
    if chosen or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(library.mallopt(option, value) == 1 for option, value in wanted)
