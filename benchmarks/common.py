"""What every benchmark shares: the machine it ran on, paired timings, memory peaks, and its last line.

A benchmark compares within one run and answers one question. Its last line is JSON:
``{"question", "targets": [{"name", "value", "goal", "holds"}], "machine", "versions"}``; values are ratios wherever
time is involved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from pdfx.host.memory import keep_large_blocks

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "deepspeed", "sentence-transformers", "pdfx")


def start(description: str, pairs: int = 5) -> argparse.Namespace:
    """Parse the options that all benchmarks have, and set the process up as a training run on the CPU is.

    Both sides of every comparison run under the same memory settings and number of threads.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print nothing but the last line")
    parser.add_argument(
        "--save", action="store_true", help="also write the last line, dated, under benchmarks/results/"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="run on the smallest sizes, to see that it works; the figures mean nothing"
    )
    parser.add_argument(
        "--pairs", type=int, default=pairs, help="measurements of each side, taken in turns (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that torch computes with (default %(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_large_blocks()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    return options


def machine() -> dict:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def at_most(name: str, value: float, goal: float) -> dict:
    return {"name": name, "value": float(f"{value:.5g}"), "goal": f"<= {goal:g}", "holds": bool(value <= goal)}


def at_least(name: str, value: float, goal: float) -> dict:
    return {"name": name, "value": float(f"{value:.5g}"), "goal": f">= {goal:g}", "holds": bool(value >= goal)}


def answer(options: argparse.Namespace, question: str, targets: list[dict], details: dict) -> None:
    """Print the targets for people, and then the line for programs."""
    result = {
        "question": question,
        "targets": targets,
        "details": details,
        "machine": machine(),
        "versions": versions(),
    }
    result |= {
        "date": date.today().isoformat(),
        "pairs": options.pairs,
        "time": "cpu" if options.threads == 1 else "wall",
    }
    result |= {"load": round(os.getloadavg()[0], 1), "tiny": options.tiny}
    if not options.json:
        print(question)
        for target in targets:
            print(
                f"  {'holds ' if target['holds'] else 'MISSED'}  {target['name']}: {target['value']:.4g} (goal "
                f"{target['goal']})"
            )
    line = json.dumps(result)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{Path(sys.argv[0]).stem}-{result['date']}.json").write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )
    print(line)


@dataclass
class Seconds:
    """Wall and CPU seconds by side, one entry per pair."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def in_turns(sides: dict[str, Callable[[], object]], pairs: int) -> Seconds:
    """The time of each side, measured in turns after one warm-up each, so that what slows the machine down slows all
    sides."""
    for side in sides.values():
        side()
    seconds = Seconds({name: [] for name in sides}, {name: [] for name in sides})
    for number in range(pairs):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            wall, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            seconds.wall[name].append(time.perf_counter() - wall)
            seconds.cpu[name].append(time.process_time() - cpu)
    return seconds


def paired_ratio(seconds: Seconds, above: str, below: str) -> float:
    """The median over pairs of one side's time over the other's.

    Wall time, except with a single thread: its CPU time is what the wall time would be if nothing else ran on the
    machine.
    """
    times = seconds.cpu if torch.get_num_threads() == 1 else seconds.wall
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def medians(seconds: Seconds) -> dict[str, float]:
    """For the details: what other programs took from the machine is in the wall time only."""
    wall = {f"{name}_seconds": round(statistics.median(values), 4) for name, values in seconds.wall.items()}
    return wall | {f"{name}_cpu_seconds": round(statistics.median(values), 4) for name, values in seconds.cpu.items()}


def peak_bytes() -> int:
    """The most memory this process ever held.

    The kernel's own figure for the program that runs: that of ``getrusage`` begins with what the process held that
    started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def held_bytes() -> int:
    """The memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_fresh_process(part: str, options: argparse.Namespace) -> dict:
    """Run one part of the calling benchmark alone in a new process, whose memory peak is then its own, and return the
    JSON of its last line."""
    command = [
        sys.executable,
        sys.argv[0],
        "--part",
        part,
        "--threads",
        str(options.threads),
        *(["--tiny"] if options.tiny else []),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])
