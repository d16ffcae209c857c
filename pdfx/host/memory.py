"""How the C library hands out large blocks of host memory to a program that computes on the CPU."""

import ctypes
import os
import sys
from pathlib import Path

FILES = {2: ("memory.max", "memory.current", ""), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}
"""By version of Linux' control groups: the files of limit and use, and the prefix of statistics that count children."""


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the machine has free or could free, or less if a control group (a container's, a job's) leaves less."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *control_group_room(proc / "self/cgroup", groups)])


def control_group_room(membership: Path, groups: Path) -> list[int]:
    """Bytes that each control group above this process leaves, if it has a limit; cached files count as free."""
    room = []
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version, root = (2, groups) if controllers == "" else (1, groups / "memory")
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                room += group_room(group, version)
    return room


def group_room(group: Path, version: int) -> list[int]:
    """The room in one group; nothing if it has no limit."""
    limit, use, prefix = FILES[version]
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        dropped = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        most, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, use))
        return [most - used + dropped]
    except (OSError, ValueError):
        # No such file at the root of all groups, and the word "max" if there is no limit.
        return []


# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20


def keep_large_blocks(environment=os.environ) -> bool:
    """Let this process keep and reuse freed memory instead of returning every large block to the system.

    By default glibc maps each block above a threshold (at most 32 MiB) from the system and unmaps it when it is freed.
    A training step allocates such activations again and again, and the kernel clears their pages each time, which takes
    up to a third of the time on CPUs. Here large blocks come from the heap, which is never trimmed. Forked children
    inherit that; GPU memory is not concerned.

    Returns:
        Whether it was done: only with glibc on Linux, and not if ``MALLOC_*`` or ``GLIBC_TUNABLES`` are set.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
    if chosen or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD))
    return all(library.mallopt(option, value) == 1 for option, value in wanted)
