"""What a failing process leaves behind: its threads' stacks, its main thread's place, and a note for launchers."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

from pdfx.config.run_files import STACKS

OTHERS = "All threads:"

COLLECTIVES = ("torch/distributed/", "deepspeed/comm/", "torch/cuda/")
"""Code that waits for other ranks, or for the GPU, which then does."""

PACKAGE = str(Path(__file__).parents[1])


def stack_path(run: Path, rank: int) -> Path:
    return run / STACKS / f"rank-{rank:05d}.txt"


def write_stacks(run: Path, rank: int, title: str) -> None:
    """Write the main thread's stack and then every thread's into the run's directory, in the place of earlier ones."""
    path = stack_path(run, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    stack = "".join(traceback.format_stack(_main_frame()))
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f"{title}\n{stack}{OTHERS}\n")
        stream.flush()
        faulthandler.dump_traceback(file=stream, all_threads=True)


def read_main_stack(run: Path, rank: int) -> str:
    """Title and main thread's stack that the rank wrote, or nothing."""
    try:
        return stack_path(run, rank).read_text(encoding="utf-8").partition(f"{OTHERS}\n")[0]
    except OSError:
        return ""


def main_place() -> tuple[str, bool]:
    """Where the main thread is, and whether it waits for other ranks there.

    The place is the innermost line of pdfx or of a file that is not installed, such as the user's own; the innermost of
    all if there is none.
    """
    frames = [frame for frame, _ in traceback.walk_stack(_main_frame())]
    own = next((frame for frame in frames if not _is_foreign(frame.f_code.co_filename)), frames[0])
    waiting = any(part in frame.f_code.co_filename for frame in frames for part in COLLECTIVES)
    return f"{own.f_code.co_filename}, line {own.f_lineno}, in {own.f_code.co_name}", waiting


def _main_frame() -> FrameType:
    return sys._current_frames()[threading.main_thread().ident or 0]


def _is_foreign(path: str) -> bool:
    """Whether a file belongs to Python or to an installed package other than pdfx."""
    return not path.startswith(PACKAGE) and (
        "/site-packages/" in path or path.startswith((f"{sys.base_prefix}/lib", "<"))
    )


def leave_note(text: str, when: float) -> None:
    """Give ``torchrun``, which prints a summary of what failed first, this rank's error for it. Other launchers take
    none.

    Args:
        when: seconds of the clock at which the rank failed; it may have waited for others since.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    note = {"message": text.strip().splitlines()[-1], "extraInfo": {"py_callstack": text, "timestamp": str(int(when))}}
    try:
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"message": note}, stream)
    except OSError:
        # The same text stands in the log.
        return
