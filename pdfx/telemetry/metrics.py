"""What a run logs: files that others read, TensorBoard, and the console; on rank 0 only.

``metrics.jsonl`` and ``coverage.jsonl`` hold what the run's arithmetic decides, and so are the same after a resume;
``timings.jsonl`` holds what the machine decides.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pdfx.config.run_files import METRICS, TIMINGS
from pdfx.data.corrupt_samples import coverage_table
from pdfx.evaluate.data_sets import Results, flattened
from pdfx.evaluate.tables import notes, print_tables, result_tables
from pdfx.host.console import console
from pdfx.host.files import write_atomically
from pdfx.host.reading import parse_json, read_bounded
from pdfx.host.system_errors import naming

_LARGEST_METRICS = 1 << 32
COVERAGE = "coverage.jsonl"
TENSORBOARD = "tensorboard"


class Telemetry:
    """Writes records of steps into the run's directory. Those of ``first_step``, the next one, and of later steps,
    which a killed run may have left, are dropped."""

    def __init__(self, run: Path, total_steps: int, first_step: int, tensorboard: bool):
        self.console = console()
        self.run, self.total_steps, self.tensorboard = run, total_steps, tensorboard
        self._open(first_step)
        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("training", total=total_steps, completed=first_step - 1)
        self.progress.start()

    def _open(self, first_step: int) -> None:
        for name in (METRICS, TIMINGS, COVERAGE):
            drop_records(self.run / name, first_step)
        self.metrics = (self.run / METRICS).open("a", encoding="utf-8")
        self.timings = (self.run / TIMINGS).open("a", encoding="utf-8")
        self.board = None
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.run / TENSORBOARD), purge_step=first_step)

    def go_back(self, first_step: int) -> None:
        """Drop the records of ``first_step`` and later, which will come again."""
        self._close_files()
        self._open(first_step)
        self.advance(first_step - 1)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def log_step(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """One record of a training step in each file, and a line on the console."""
        write_record(self.metrics, {"step": step, **metrics})
        write_record(self.timings, {"step": step, **timings})
        self._board("train", step, metrics)
        self._board("timing", step, timings)
        self.say(step_line(step, self.total_steps, metrics, timings))

    def log_evaluation(self, step: int, results: Results) -> None:
        """One record of an evaluation, its names prefixed by ``evaluation/``; tables on the console, of several data
        sets that of the first metric alone."""
        metrics = flattened(results)
        write_record(self.metrics, {"step": step, **{f"evaluation/{name}": value for name, value in metrics.items()}})
        self._board("evaluation", step, metrics)
        self.say(f"step {step}/{self.total_steps}  evaluation")
        tables = result_tables(results)
        print_tables(tables if len(results) == 1 else tables[:1], self.console)
        for sentence in notes(results):
            self.say(sentence)

    def log_coverage(self, step: int, figures: dict[str, float], report: dict[str, dict]) -> None:
        """What was read of each data set until ``step``; one record of the file, and a table on the console."""
        with (self.run / COVERAGE).open("a", encoding="utf-8") as stream:
            write_record(stream, {"step": step, **figures, "data_sets": report})
        self.console.print(coverage_table(report, f"step {step}: what was read, {figures['epoch']:.2f} epochs"))

    def say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()
        self._close_files()

    def _close_files(self) -> None:
        self.metrics.close()
        self.timings.close()
        if self.board is not None:
            self.board.close()

    def _board(self, group: str, step: int, values: dict[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)


def step_line(step: int, total_steps: int, metrics: dict[str, float], timings: dict[str, float]) -> str:
    """One line for people; the files hold everything."""
    paths = " ".join(f"{value:.3f}" for name, value in metrics.items() if name.startswith("loss_path_"))
    parts = [
        f"step {step}/{total_steps}",
        f"loss {metrics['loss']:.4f} (paths {paths}, fused {metrics['loss_fused']:.3f})",
    ]
    if "mutual_information" in metrics:
        parts.append(f"MI {metrics['mutual_information']:.3g} (R² {metrics['mi_r2']:.2f})")
    if "path_cosine" in metrics:
        r2 = f", R² {metrics['path_r2']:.2f}" if "path_r2" in metrics and "mi_r2" not in metrics else ""
        parts.append(f"path cosine {metrics['path_cosine']:.2f}, CKA {metrics['path_cka']:.2f}{r2}")
    parts.append(f"lr {metrics['learning_rate']:.2e}")
    speed = f"{timings['pairs_per_second']:.1f} pairs/s, {timings['model_tflops']:.3g} TFLOP/s"
    share = f" (MFU {timings['mfu']:.0%})" if "mfu" in timings else ""
    parts.append(
        f"{speed}{share}, {timings['data_wait_share']:.0%} waiting for data, {timings['peak_memory_gib']:.1f} GiB"
    )
    return "  ".join(parts)


def write_record(stream, record: dict) -> None:
    """One JSON line, handed to the system at once. A value that is not finite becomes null: JSON has no NaN."""
    bad = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    with naming(stream.name):
        stream.write(json.dumps(record | dict.fromkeys(bad)) + "\n")
        stream.flush()


def drop_records(path: Path, first_step: int) -> None:
    """Remove the records of ``first_step`` and later, and a last line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in read_bounded(path, _LARGEST_METRICS).splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and parse_json(line)["step"] < first_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with write_atomically(path) as stream:
        stream.write(b"".join(kept))
