"""The most memory that a process held since a point in time.

``resource.getrusage`` does not say so: its figure never falls, and a child begins with its parent's.
"""

import os
from pathlib import Path

FOR_CHILDREN = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}
"""The environment of a process that imports this file."""


def begin() -> None:
    """Forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of memory held at most since ``begin``."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) << 10
