"""A build that is stopped at any moment goes on where it stopped, to the same bytes."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_shards import picture, write_records

from data_tools.build import BuildSettings, build, build_shards
from data_tools.encode import Encoding
from data_tools.quarantine import TooManyBadRecords
from data_tools.sources.jsonl import JsonlSource
from pdfx.errors import UserError

KILLS = 20


def content(folder: Path) -> dict[str, bytes]:
    """All files; folders fail."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mixed_records(folder: Path, count: int, pictures: int, **size: int) -> Path:
    """Of each ten: eight with a picture each, one without its picture, and one that repeats the first."""
    (folder / "images").mkdir()
    for i in range(pictures):
        (folder / "images" / f"{i}.png").write_bytes(picture(i, **size))
    records = []
    for i in range(count):
        target = {"text": f"target {i}", "images": [f"{i % pictures}.png" if i % 10 != 4 else "absent.png"]}
        records.append({"query": {"text": f"query {i}"}, "target": target} if i % 10 != 7 else {**records[i - 7], "key": f"again-{i}"})
    return write_records(folder, records)


@pytest.fixture
def small(tmp_path) -> tuple[JsonlSource, Path, BuildSettings]:
    records = mixed_records(tmp_path, 23, 4)
    return JsonlSource(records), tmp_path / "images", BuildSettings(samples_per_shard=6, deduplicate=True, max_bad_share=0.2)


def stop_at(operation: int, *arguments) -> int:
    """Builds in a process that ends, without any clean-up, before it changes the file system for the time of this number; gives its exit code, 9 if so."""

    def run() -> None:
        changes = 0

        def count(event: str, details: tuple) -> None:
            nonlocal changes
            opens_to_write = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
            changes += bool(opens_to_write) or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
            if changes == operation:
                os._exit(9)

        sys.addaudithook(count)
        build(*arguments)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def test_a_build_that_ends_before_any_of_its_changes_to_files_goes_on_to_the_same_bytes(tmp_path, small):
    source, images, settings = small
    build(source, images, tmp_path / "undisturbed", settings)
    expected = content(tmp_path / "undisturbed")
    assert len(json.loads(expected["index.json"])["shards"]) == 4 and expected["quarantine.jsonl"].count(b"\n") == 4
    codes = []
    while not codes or codes[-1] == 9:
        out = tmp_path / str(len(codes))
        codes.append(stop_at(len(codes) + 1, source, images, out, settings))
        # Once more, in the clean-up after the first time.
        stop_at(3, source, images, out, settings)
        build(source, images, out, settings)
        assert content(out) == expected, f"stopped before change {len(codes)}"
    assert codes[-1] == 0 and len(codes) > 30


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
        return [number for number, parent in self.members().items() if parent not in (self.process.pid, os.getpid()) and number != self.process.pid]

    def wait_for_work(self, out: Path, before: int, seconds: float = 60) -> None:
        """Until there is more in the directory than ``before``, in bytes."""
        end = time.monotonic() + seconds
        while written(out) < before + 10_000:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.002)

    def wait_until_all_ended(self) -> None:
        end = time.monotonic() + 30
        while self.members():
            assert time.monotonic() < end, "processes outlive the command"
            time.sleep(0.01)


def written(out: Path) -> int:
    """Bytes that are there; a file may go while it is looked at."""
    total = 0
    for path in out.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def disturb(run: Run, out: Path, before: int, numbers: random.Random) -> None:
    """Kill the command, one of its workers, or all of its processes, at a random moment of its start or of its work.

    Args:
        before: bytes in the directory when the command began.
    """
    victim, moment = numbers.choice(("command", "worker", "all")), numbers.choice(("start", "work", "work"))
    if moment == "start" and victim != "worker":
        time.sleep(numbers.uniform(0, 0.6))
    else:
        run.wait_for_work(out, before)
        time.sleep(numbers.uniform(0, 0.1))
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
    settings = BuildSettings(samples_per_shard=7, encoding=Encoding(resize=512, format="jpeg"), deduplicate=True, max_bad_share=0.2)
    build(JsonlSource(records), tmp_path / "images", tmp_path / "undisturbed", settings)
    options = ["--samples-per-shard", "7", "--resize", "512", "--image-format", "jpeg", "--deduplicate", "--max-bad-share", "0.2", "--workers", "2"]
    out = tmp_path / "disturbed"
    command = [sys.executable, "-m", "pdfx.cli", "shards", "build", records, "--images", tmp_path / "images", "--out", out, *options]
    numbers = random.Random(0)
    for _ in range(KILLS):
        before = written(out)
        disturb(Run(command, tmp_path / "log"), out, before, numbers)
        assert not (out / "index.json").exists()
    run = Run(command, tmp_path / "log")
    assert run.process.wait(timeout=120) == 0, run.log.read_text()
    assert content(out) == content(tmp_path / "undisturbed")


def test_ctrl_c_ends_with_one_sentence_and_75_and_the_same_command_goes_on(tmp_path):
    records = mixed_records(tmp_path, 60, 5, width=1200, height=900)
    out = tmp_path / "out"
    options = ["--samples-per-shard", "7", "--resize", "512", "--max-bad-share", "0.2"]
    command = [sys.executable, "-m", "pdfx.cli", "shards", "build", records, "--images", tmp_path / "images", "--out", out, *options]
    for stop, workers in ((signal.SIGINT, "2"), (signal.SIGTERM, "1")):
        before = written(out)
        run = Run([*command, "--workers", workers], tmp_path / "log")
        run.wait_for_work(out, before)
        # A terminal signals all processes, a batch system often the first alone.
        os.killpg(run.process.pid, stop) if stop == signal.SIGINT else run.process.send_signal(stop)
        assert run.process.wait(timeout=60) == 75
        assert run.log.read_text() == "Interrupted; the same command goes on where it stopped.\n"
        run.wait_until_all_ended()
    assert Run([*command, "--workers", "1"], tmp_path / "log").process.wait(timeout=60) == 0
    settings = BuildSettings(samples_per_shard=7, encoding=Encoding(resize=512), max_bad_share=0.2)
    build(JsonlSource(records), tmp_path / "images", tmp_path / "undisturbed", settings)
    assert content(out) == content(tmp_path / "undisturbed")


def test_finished_shards_are_not_built_again(tmp_path, small):
    source, images, settings = small
    assert stop_at(30, source, images, tmp_path / "out", settings) == 9
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) >= 2
    calls = []
    build(source, images, tmp_path / "out", settings, progress=lambda done, total: calls.append((done, total)))
    # The last one may have been moved to its place without being written down.
    finished = sorted(before)[:-1]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == before[name] for name in finished)
    assert calls[0][0] >= 6 * len(finished) and calls[-1] == (23, 23)


def test_a_finished_build_says_so_and_is_left_alone(tmp_path, small):
    source, images, settings = small
    first = build(source, images, tmp_path / "out", settings)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = build(source, images, tmp_path / "out", settings)
    assert (first.was_finished, second.was_finished) == (False, True)
    assert (second.shards, second.samples, second.fingerprint, second.rejected) == (first.shards, first.samples, first.fingerprint, first.rejected)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"samples_per_shard": 5}, "settings.samples_per_shard is 5 and was 6"),
        ({"encoding": Encoding(resize=100)}, "settings.resize is 100 and was null"),
        ({"deduplicate": False}, "settings.deduplicate is false and was true"),
    ],
)
def test_another_setting_is_named_and_does_not_touch_what_is_there(tmp_path, small, change, sentence):
    source, images, settings = small
    out = tmp_path / "out"
    build(source, images, out, settings)
    before = content(out)
    other = BuildSettings(**{**vars(settings), **change})
    with pytest.raises(UserError, match=f"out is not an empty directory: it holds a finished build .*{sentence}.*--overwrite"):
        build(source, images, out, other)
    (out / "index.json").unlink()
    lines = (out / "build.jsonl").read_bytes().splitlines(keepends=True)
    (out / "build.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UserError, match=f"holds a build that cannot go on like this .*{sentence}"):
        build(source, images, out, other)
    assert {name: data for name, data in content(out).items() if name not in ("index.json", "build.jsonl")}.items() <= before.items()


def test_a_changed_source_or_image_folder_is_named(tmp_path, small):
    source, images, settings = small
    build(source, images, tmp_path / "out", settings)
    with pytest.raises(UserError, match="images is .* and was"):
        build(source, tmp_path, tmp_path / "out", settings)
    with source.files[0].open("a") as stream:
        stream.write("\n")
    size = source.files[0].stat().st_size
    with pytest.raises(UserError, match=f"source.files is {size} and was {size - 1}"):
        build(source, images, tmp_path / "out", settings)


def test_overwriting_replaces_a_build_and_leaves_other_files_alone(tmp_path, small):
    source, images, settings = small
    out = tmp_path / "out"
    build(source, images, out, BuildSettings(samples_per_shard=2, max_bad_share=0.2))
    (out / "README").write_text("mine")
    build(source, images, out, BuildSettings(**{**vars(settings), "overwrite": True}))
    build(source, images, tmp_path / "fresh", settings)
    assert content(out) == {**content(tmp_path / "fresh"), "README": b"mine"}


def test_overwriting_is_refused_where_there_was_no_build(tmp_path, small):
    source, images, settings = small
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="is not an empty directory"):
        build(source, images, tmp_path / "out", BuildSettings(**{**vars(settings), "overwrite": True}))
    assert content(tmp_path / "out") == {"00000.tar": b"precious"}


def test_two_builds_of_one_directory_do_not_meet(tmp_path, small):
    source, images, settings = small
    met = []

    def second(done: int, _: int) -> None:
        if done == 3:
            with pytest.raises(UserError, match="Another process is building in"):
                build(source, images, tmp_path / "out", settings)
            met.append(done)

    build(source, images, tmp_path / "out", settings, progress=second)
    assert met == [3]


def test_damage_to_what_a_build_would_go_on_with_is_named(tmp_path, small):
    source, images, settings = small
    out = tmp_path / "out"
    with pytest.raises(TooManyBadRecords):
        build(source, images, out, BuildSettings(**{**vars(settings), "max_bad_share": 0.05}))
    journal = (out / "build.jsonl").read_bytes()
    assert journal.count(b"\n") > 1
    (out / "build.jsonl").write_bytes(journal.replace(b'"position":', b'"position"', 1))
    with pytest.raises(UserError, match="build.jsonl is damaged.*--overwrite"):
        build(source, images, out, settings)
    (out / "build.jsonl").write_bytes(journal)
    os.truncate(out / "00000.tar", 1000)
    with pytest.raises(UserError, match="00000.tar is truncated"):
        build(source, images, out, settings)


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path):
    records = mixed_records(tmp_path, 60, 6)
    for workers in (1, 2, 3):
        settings = BuildSettings(samples_per_shard=7, deduplicate=True, max_bad_share=0.2, workers=workers)
        build(JsonlSource(records), tmp_path / "images", tmp_path / str(workers), settings)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    import resource

    records = mixed_records(tmp_path, 10, 2, width=200, height=100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"out cannot be written \(File too large\); make room"):
            build_shards(records, tmp_path / "images", tmp_path / "out", max_bad_share=0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build_shards(records, tmp_path / "images", tmp_path / "out", max_bad_share=0.2)
    build_shards(records, tmp_path / "images", tmp_path / "undisturbed", max_bad_share=0.2)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
