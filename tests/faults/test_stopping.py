"""Signals that ask a run to stop, from the first moment on and whatever the main thread is at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT

from pdfx.faults.stopping import EXIT_STOPPED, STOP_SIGNALS

pytestmark = pytest.mark.process

HANGS_IN_C = """
import ctypes, sys, threading
from pdfx.faults.stopping import StopRequest
stop = StopRequest(attended=len(sys.argv) > 1)
if len(sys.argv) > 1:
    wait = lambda: [None for _ in iter(lambda: stop.asked, True)] and print("asked", stop.urgent, flush=True)
    threading.Thread(target=wait, daemon=True).start()
print("ready", flush=True)
mutex, c = ctypes.create_string_buffer(256), ctypes.CDLL(None)
c.pthread_mutex_lock(mutex)
c.pthread_mutex_lock(mutex)
"""


def start(*arguments: str, before: str = "") -> subprocess.Popen:
    """A process whose main thread hangs in C code, where no handler of Python is called."""
    command = f'{before} exec "{sys.executable}" -c "$PROGRAM" {" ".join(arguments)}'
    environment = os.environ | {"PROGRAM": HANGS_IN_C}
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_anyone_attends_a_signal_ends_the_process_even_where_it_hangs_in_c(number):
    process = start()
    process.send_signal(number)
    assert process.wait(timeout=20) == EXIT_STOPPED


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_afterwards_it_is_remembered_at_once_and_whether_a_kill_will_follow(number):
    process = start("attended")
    process.send_signal(number)
    assert process.stdout.readline() == f"asked {number != signal.SIGUSR1}\n"
    process.kill()
    process.wait()


def test_a_hang_up_that_the_process_was_started_to_ignore_stays_ignored():
    process = start(before="trap '' HUP;")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == EXIT_STOPPED


@pytest.mark.parametrize(
    "command",
    [["launch/train.py"], ["-m", "pdfx.train"], ["-m", "pdfx", "train"]],
    ids=["launch", "pdfx.train", "pdfx train"],
)
def test_a_run_that_is_only_about_to_start_ends_with_the_code_for_stopped(command):
    # It imports for seconds before it looks for the recipe's data, which is not there.
    process = subprocess.Popen(
        [sys.executable, *command, "launch/recipes/quickstart.yaml", "data.train=nowhere"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    caught = 0
    while not caught:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == EXIT_STOPPED, process.stderr.read()
