"""The command that builds shards, killed or interrupted while its processes work."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_builds import content, mixed_records

from data_tools.build.builder import BuildSettings, build
from data_tools.build.settings import Encoding
from data_tools.sources.jsonl import JsonlSource

pytestmark = pytest.mark.process

KILLS = 20
SHARD_BYTES = 850_000
"""About those of seven samples."""


class Run:
    """The command in a session of its own."""

    def __init__(self, command: list[str], log: Path):
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)

    def members(self) -> dict[int, int]:
        """Process number and parent of each process of the session that still runs."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found[int(path.parent.name)] = int(parent)
        return found

    def workers(self) -> list[int]:
        """Those that the server of workers started."""
        return [
            number
            for number, parent in self.members().items()
            if parent not in (self.process.pid, os.getpid()) and number != self.process.pid
        ]

    def wait_until(self, happened, seconds: float = 60) -> None:
        """Until a condition holds, which it must before the command ends."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.001)

    def wait_until_all_ended(self) -> None:
        end = time.monotonic() + 30
        while self.members():
            assert time.monotonic() < end, "processes outlive the command"
            time.sleep(0.01)


class Progress:
    """What a command has done in the directory since it began; to be made before it begins."""

    def __init__(self, out: Path):
        self.out, self.unfinished = out, out / ".build" / "unfinished"
        self._shards, self._stamp = self._count_shards(), self._read_stamp()

    def has_begun(self) -> bool:
        """Whether it has cleared away what the one before left unfinished."""
        return self._read_stamp() not in (None, self._stamp)

    def bytes(self) -> int:
        """Roughly those that it has written."""
        sizes = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.unfinished.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
        return (self._count_shards() - self._shards) * SHARD_BYTES + sum(sizes) if self.has_begun() else 0

    def _count_shards(self) -> int:
        return len(list(self.out.glob("*.tar")))

    def _read_stamp(self) -> int | None:
        try:
            return self.unfinished.stat().st_ctime_ns
        except FileNotFoundError:
            return None


def disturb(run: Run, progress: Progress, numbers: random.Random) -> None:
    """Kill the command, one of its workers, or all of its processes, at a random moment of its own start, of its
    workers' start, or of their work."""
    victim = numbers.choice(("command", "worker", "all"))
    moment = "work" if victim == "worker" else numbers.choice(("start", "workers", "work", "work"))
    if moment == "start":
        time.sleep(numbers.uniform(0, 0.2))
    elif moment == "workers":
        run.wait_until(progress.has_begun)
        time.sleep(numbers.uniform(0, 0.15))
    else:
        amount = numbers.uniform(0.05, 1.2) * SHARD_BYTES
        run.wait_until(lambda: progress.bytes() >= amount)
    if victim == "worker":
        os.kill(numbers.choice(run.workers()), signal.SIGKILL)
        assert run.process.wait(timeout=60) == 2
        assert "A worker process was killed" in run.log.read_text()
    elif victim == "all":
        os.killpg(run.process.pid, signal.SIGKILL)
    else:
        run.process.kill()
    run.process.wait(timeout=60)
    run.wait_until_all_ended()


def test_a_build_killed_twenty_times_with_its_workers_is_byte_identical_to_an_undisturbed_one(tmp_path):
    records = mixed_records(tmp_path, 120, 10, width=1200, height=900)
    settings = BuildSettings(
        samples_per_shard=7, encoding=Encoding(resize=512, format="jpeg"), deduplicate=True, max_bad_share=0.2
    )
    build(JsonlSource(records), tmp_path / "images", tmp_path / "undisturbed", settings)
    options = [
        "--samples-per-shard",
        "7",
        "--resize",
        "512",
        "--image-format",
        "jpeg",
        "--deduplicate",
        "--max-bad-share",
        "0.2",
        "--workers",
        "2",
    ]
    out = tmp_path / "disturbed"
    command = [
        sys.executable,
        "-m",
        "pdfx",
        "shards",
        "build",
        records,
        "--images",
        tmp_path / "images",
        "--out",
        out,
        *options,
    ]
    numbers = random.Random(0)
    for _ in range(KILLS):
        progress = Progress(out)
        disturb(Run(command, tmp_path / "log"), progress, numbers)
        assert not (out / "index.json").exists()
    run = Run(command, tmp_path / "log")
    assert run.process.wait(timeout=120) == 0, run.log.read_text()
    assert content(out) == content(tmp_path / "undisturbed")


def test_ctrl_c_ends_with_one_sentence_and_75_and_the_same_command_goes_on(tmp_path):
    records = mixed_records(tmp_path, 240, 5, width=1200, height=900)
    out = tmp_path / "out"
    options = ["--samples-per-shard", "7", "--resize", "512", "--max-bad-share", "0.2"]
    command = [
        sys.executable,
        "-m",
        "pdfx",
        "shards",
        "build",
        records,
        "--images",
        tmp_path / "images",
        "--out",
        out,
        *options,
    ]
    for stop, workers in ((signal.SIGINT, "2"), (signal.SIGTERM, "1")):
        progress = Progress(out)
        run = Run([*command, "--workers", workers], tmp_path / "log")
        run.wait_until(lambda progress=progress: progress.bytes() > 0)
        # A terminal signals all processes, a batch system often the first alone.
        os.killpg(run.process.pid, stop) if stop == signal.SIGINT else run.process.send_signal(stop)
        assert run.process.wait(timeout=60) == 75
        assert run.log.read_text() == "Interrupted; the same command resumes where it stopped.\n"
        run.wait_until_all_ended()
    assert Run([*command, "--workers", "1"], tmp_path / "log").process.wait(timeout=60) == 0
    settings = BuildSettings(samples_per_shard=7, encoding=Encoding(resize=512), max_bad_share=0.2)
    build(JsonlSource(records), tmp_path / "images", tmp_path / "undisturbed", settings)
    assert content(out) == content(tmp_path / "undisturbed")
