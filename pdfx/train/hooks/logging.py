"""What the run's owner sees of a step: files of metrics and timings, TensorBoard, the console."""

from __future__ import annotations

from pdfx.evaluate.data_sets import Results
from pdfx.telemetry.flops import shared_peak_tflops
from pdfx.train.engine import peak_memory
from pdfx.train.hooks.coverage import Coverage
from pdfx.train.run import Hook, Run


class Logging(Hook):
    """Logs every ``train.logging_steps`` steps, each evaluation, and what was read at the end of each epoch; on rank 0.

    Args:
        coverage: knows what was read.
    """

    def __init__(self, coverage: Coverage):
        self.coverage = coverage

    def start(self, run: Run) -> None:
        dtype = run.engine.module.embedder.dtype
        run.timer.peak_tflops = shared_peak_tflops(run.config.train.peak_tflops, run.world, dtype, run.say)
        run.timer.reset()

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        if run.telemetry is None:
            return
        run.telemetry.advance(run.step)
        if run.step % run.config.train.logging_steps == 0 or run.is_last:
            timings = run.timer.report(peak_memory(run.world.device), run.stepper.phases.take())
            run.telemetry.log_step(run.step, metrics, timings)
        if self.coverage.finished_epoch(run) or run.is_last:
            run.telemetry.log_coverage(run.step, self.coverage.figures(run), run.loader.coverage_report())

    def evaluated(self, run: Run, results: Results) -> None:
        if run.telemetry is not None:
            run.telemetry.log_evaluation(run.step, results)

    def went_back(self, run: Run, state: dict, repeat: bool) -> None:
        if run.telemetry is not None:
            run.telemetry.go_back(run.step + 1)
