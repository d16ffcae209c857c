"""One run at a time in a directory; whoever is gone does not block it."""

import dataclasses
import json
import multiprocessing
import os
import threading
import time

import psutil
import pytest

from pdfx.config.run_files import LOCK
from pdfx.errors import UserError
from pdfx.faults import run_lock
from pdfx.faults.run_lock import RunLock, read_holder, start_of, this_process


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.1)
    monkeypatch.setattr(run_lock, "STALE", 1.0)


def hold(run, pipe) -> None:
    RunLock(run)
    pipe.send("held")
    time.sleep(60)


@pytest.fixture
def other_run(tmp_path):
    """A process that holds the directory."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, there))
    process.start()
    assert here.recv() == "held"
    yield process
    process.kill()
    process.join()


def write(tmp_path, **changes) -> None:
    (tmp_path / LOCK).write_text(json.dumps(dataclasses.asdict(dataclasses.replace(this_process(), **changes))))


@pytest.mark.process
def test_a_second_run_is_refused_with_the_holder_and_the_cure_until_the_first_one_is_killed(tmp_path, other_run):
    with pytest.raises(
        UserError,
        match=rf"is in use by another run \(host .*, process {other_run.pid}, since .*choose another train.output_dir",
    ):
        RunLock(tmp_path)
    other_run.kill()
    other_run.join()
    lock = RunLock(tmp_path)
    assert read_holder(tmp_path / LOCK).process == os.getpid()
    lock.release()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.process
def test_a_process_number_that_was_used_again_is_not_the_holder(tmp_path, other_run):
    write(tmp_path, process=other_run.pid, started=1.0)
    RunLock(tmp_path).release()


@pytest.mark.process
def test_a_process_began_when_the_kernel_says_in_ticks_which_no_clock_changes(other_run):
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - start_of(other_run.pid) / os.sysconf("SC_CLK_TCK") < 60
    other_run.kill()
    other_run.join()
    with pytest.raises(psutil.NoSuchProcess):
        start_of(other_run.pid)


def test_a_requeued_job_takes_its_own_lock_over_at_once_wherever_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE", 60.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write(tmp_path, machine="another", job="7", restart="0")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(tmp_path).release()


def test_a_lock_of_another_machine_counts_while_it_is_touched_and_not_after(tmp_path):
    write(tmp_path, machine="another", job="7")
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.1):
            os.utime(tmp_path / LOCK)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(UserError, match="is in use by another run .*job 7"):
            RunLock(tmp_path)
    finally:
        ended.set()
        toucher.join()
    RunLock(tmp_path).release()


def test_a_holder_touches_its_lock_and_learns_that_another_run_took_it(tmp_path):
    lock = RunLock(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    deadline = time.monotonic() + 20
    while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / LOCK).stat().st_mtime > 0
    assert lock.trouble() is None
    write(tmp_path, host="thief")
    while lock.trouble() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "Another run (host thief" in lock.trouble()
    lock.release()
    assert read_holder(tmp_path / LOCK).host == "thief"


def test_a_lock_cut_short_by_a_crash_blocks_nobody(tmp_path):
    (tmp_path / LOCK).write_text('{"token": "ab')
    RunLock(tmp_path).release()


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match="lock.json cannot be written: No such file or directory"):
        RunLock(tmp_path / "nowhere")


def contend(run, begin, over, outcomes) -> None:
    begin.wait()
    try:
        lock = RunLock(run)
    except UserError:
        outcomes.put("refused")
    else:
        outcomes.put("held" if read_holder(run / LOCK).token == lock.own.token else "robbed")
    # Held until all have tried, as a run would.
    over.wait()


@pytest.mark.process
@pytest.mark.parametrize("left", ["dead", "cut short", "none"])
def test_of_several_starts_over_a_dead_lock_exactly_one_gets_it(tmp_path, left):
    context = multiprocessing.get_context("fork")
    for number in range(15):
        run, count = tmp_path / str(number), 2 + number % 3
        run.mkdir()
        if left == "dead":
            write(run, process=2**22 + 1, started=1.0)
        elif left == "cut short":
            (run / LOCK).write_text('{"token": "ab')
        begin, over, outcomes = context.Barrier(count), context.Barrier(count), context.SimpleQueue()
        starts = [context.Process(target=contend, args=(run, begin, over, outcomes)) for _ in range(count)]
        for start in starts:
            start.start()
        found = sorted(outcomes.get() for _ in starts)
        for start in starts:
            start.join()
        assert found == ["held"] + ["refused"] * (count - 1)
