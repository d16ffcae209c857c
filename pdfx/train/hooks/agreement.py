"""From time to time the ranks compare where they are."""

from __future__ import annotations

from pdfx.distributed.agreement import require_agreement, state_of_step
from pdfx.train.run import Hook, Run


class Agreement(Hook):
    """Ends the run if a rank is out of step, every ``guards.agreement_steps`` steps."""

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        turn, rest = divmod(run.step, run.config.guards.agreement_steps or run.step + 1)
        if rest or run.world.size == 1:
            return
        with run.world.together():
            kept = run.objective.kept_tensors()
            state = state_of_step(run.step, run.loader.state_dict(), metrics, run.engine.module, kept, turn)
            require_agreement(run.world, state, f"after step {run.step}")
