"""What all tests share.

A test that starts a process, or uses a fixture that does, is marked ``process``; the others are unit tests. A test
without the mark that starts a process fails. With ``--dist loadgroup``, tests that start processes run one after the
other, and each file of unit tests stays on one worker, which makes its fixtures once. Tests of SLURM run alone, after
all others.
"""

import fcntl
import gc
import multiprocessing.process
import os
import sys

import pytest

STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen", "multiprocessing"}
"""Audit events of a process that starts."""

# Threads that wait for one another take ten times as long when other processes want their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HELPERS = {"file", "gcc", "git", "scontrol", "uname", "x86_64-linux-gnu-gcc"}
"""Programs that answer at once, which libraries and pdfx itself ask."""

started: list[str] = []


def note_start(event: str, arguments: tuple) -> None:
    if event in STARTS and not (event == "subprocess.Popen" and os.path.basename(arguments[0]) in HELPERS):
        started.append(f"{event}{arguments}")


sys.addaudithook(note_start)


def announced(process: multiprocessing.process.BaseProcess, start=multiprocessing.process.BaseProcess.start) -> None:
    # A server that runs already starts it, which Python does not report.
    sys.audit("multiprocessing", process)
    start(process)


multiprocessing.process.BaseProcess.start = announced


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    if session.config.pluginmanager.hasplugin("dsession"):
        # Its workers collect. It would only hold them up by importing torch first.
        return (yield)
    # Nothing that an import makes is garbage, and later collections need not look at it.
    gc.disable()
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    # The time that an example takes says nothing on a busy machine.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    # What torch asked while it was imported is no test's doing.
    started.clear()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def same_environment():
    """Variables that a test sets, such as those of a process group that it joins, must not reach the next one."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def two_ranks():
    """Two ranks for every test that needs a pair: starting them takes seconds, a training run in them does not."""
    from distributed.ranks import Ranks

    with Ranks(2) as ranks:
        yield ranks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    items.sort(key=is_slurm)
    for item in items:
        if item.path.parent.name in ("distributed", "slurm") or "two_ranks" in item.fixturenames:
            item.add_marker(pytest.mark.process)
        if config.pluginmanager.hasplugin("xdist"):
            # Those that start processes on one worker, one after the other: they have limits in seconds.
            group = "process" if item.get_closest_marker("process") else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))


def is_slurm(item) -> bool:
    return item.path.parent.name == "slurm"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """SLURM's nodes have the machine to themselves: their tests wait for those under way on the other worker."""
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if is_slurm(item) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            # A process that was forked meanwhile holds the same file open.
            fcntl.flock(lock, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.passed and started and not item.get_closest_marker("process"):
        report.outcome = "failed"
        report.longrepr = f"A unit test started {len(started)} processes; mark it with 'process': {started[0]:.300}"
    if call.when == "teardown":
        started.clear()
    return report
