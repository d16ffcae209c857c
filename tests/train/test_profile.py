"""Traces of a few steps."""

import json

import torch

from pdfx.train.hooks.profiling import SKIPPED, profiled


def steps(advance, count: int) -> None:
    for number in range(count):
        with torch.profiler.record_function(f"step {number}"):
            torch.ones(2) + 1
        advance()


def test_the_trace_holds_the_steps_after_the_first_ones_and_no_others(tmp_path):
    with profiled(tmp_path / "trace.json", 2) as advance:
        steps(advance, 6)
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {name for name in names if name.startswith("step ")} == {
        f"step {number}" for number in range(SKIPPED, SKIPPED + 2)
    }


def test_without_a_number_of_steps_nothing_is_written(tmp_path):
    with profiled(tmp_path / "trace.json", None) as advance:
        steps(advance, 3)
    assert not (tmp_path / "trace.json").exists()
