"""The order in which hooks are called."""

from __future__ import annotations

from pdfx.train.hooks.agreement import Agreement
from pdfx.train.hooks.coverage import Coverage
from pdfx.train.hooks.evaluation import Evaluation
from pdfx.train.hooks.guards import StepGuards
from pdfx.train.hooks.logging import Logging
from pdfx.train.hooks.profiling import Profiling
from pdfx.train.hooks.saving import Saving
from pdfx.train.run import Hook, Run


def hooks_in_order(run: Run) -> list[Hook]:
    """All hooks of a run, with those of the recipe among them.

    The ranks compare their metrics before anything is decided by them. The guards may go back to a checkpoint, and what
    follows them then does not see the step. The recipe's own hooks come before what logs their figures and saves their
    state; an evaluation comes before the checkpoint that it judges.
    """
    coverage = Coverage(run)
    guards = StepGuards(run.config.guards, run.objective, run.say)
    return [Profiling(), Agreement(), coverage, guards, Logging(coverage), Evaluation(), Saving(run)]
