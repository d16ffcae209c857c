"""Files that are written, and drafts of directories: what a killed process left is removed, what a living one writes is
not, however many begin at once."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pdfx.errors import UserError
from pdfx.host.files import draft_beside, parse_size, write_json

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from pdfx.host.files import draft_beside
with draft_beside(Path(sys.argv[1])) as draft:
    draft.mkdir()
    print(draft, flush=True)
    sys.stdin.read()
"""
AGAIN_AND_AGAIN = """
import sys
import time
from pathlib import Path
from pdfx.host.files import draft_beside
end = time.monotonic() + 2
while time.monotonic() < end:
    with draft_beside(Path(sys.argv[1])) as draft:
        draft.mkdir()
        (draft / "file").write_text("whole")
        assert (draft / "file").read_text() == "whole"
"""


def start(script: str, final: Path) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script, str(final)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.process
def test_a_living_processs_draft_stays_and_a_killed_ones_is_removed(tmp_path):
    # A name in which glob would see a pattern.
    final = tmp_path / "export[1]"
    with start(HOLD, final) as process:
        draft = Path(process.stdout.readline().strip())
        with draft_beside(final) as own:
            assert draft.is_dir() and own != draft
        assert draft.is_dir()
        process.kill()
        process.wait()
        assert draft.is_dir()
        with draft_beside(final):
            assert not draft.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_processes_that_begin_and_end_at_once_leave_one_anothers_drafts_alone(tmp_path):
    processes = [start(AGAIN_AND_AGAIN, tmp_path / "export") for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert errors == ["", "", ""] and not list(tmp_path.iterdir())


def test_a_link_a_pipe_and_a_device_stay_what_they_are(tmp_path):
    real, link, pipe, device = (tmp_path / name for name in ("real.json", "link.json", "pipe", "null"))
    real.write_text("old")
    link.symlink_to(real.name)
    write_json([1], link)
    assert link.is_symlink() and json.loads(real.read_text()) == [1]
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json([2], pipe)
    reader.join(30)
    assert pipe.is_fifo() and json.loads(read[0]) == [2]
    device.symlink_to("/dev/null")
    write_json([3], device)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9),
        ("5GB", 5 * 10**9),
        ("1GiB", 2**30),
        ("1.5GiB", 3 * 2**29),
        ("500 mb", 5 * 10**8),
        ("1.5k", 1500),
        ("4096", 4096),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "1XB", "5 XB", "-1GB", "1TBx", "1 GB 2"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=f"Invalid size '{text}'; write it as 5GB"):
        parse_size(text)
