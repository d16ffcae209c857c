"""How much host memory a process may still take."""

from __future__ import annotations

from pathlib import Path

FILES = {2: ("memory.max", "memory.current", ""), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}
"""By version of Linux' control groups: the files of limit and use, and what stands before a group's own statistics that count its children in."""


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the machine has free or could free, or less where a control group (a container's or a batch job's) leaves less."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *control_group_room(proc / "self/cgroup", groups)])


def control_group_room(membership: Path, groups: Path) -> list[int]:
    """What each control group with a limit leaves, in bytes: this process's own group and those that it lies in. Cached files count as free."""
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
    """The room in one group; nothing where it has no limit."""
    limit, use, prefix = FILES[version]
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        dropped = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        return [int((group / limit).read_text(encoding="ascii")) - int((group / use).read_text(encoding="ascii")) + dropped]
    except (OSError, ValueError):
        # No such file at the root of all groups, and the word "max" where there is no limit.
        return []
