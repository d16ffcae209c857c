"""What a run watches itself for after every step, and how it goes back to an earlier checkpoint. All of it follows from
metrics that are alike on every rank, so all ranks decide alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pdfx.checkpoint.directory import Checkpoint, checkpoint_paths, remove_checkpoint, step_of
from pdfx.checkpoint.resume import open_together
from pdfx.config.train_sections import GuardsSection
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.objective import Objective
from pdfx.train.run import Hook, Run
from pdfx.train.step import was_skipped

CURE = (
    "resume from the last checkpoint with a lower train.learning_rate, a larger train.warmup_steps, or "
    "train.max_grad_norm set."
)
COUNTERS = {"skipped", "roll_backs", "resets", "collapsed", "returned_to", "recent"}


@dataclass(frozen=True)
class RollBack:
    """The run must go back to before ``step``, the first of the skipped ones, because of ``reason``."""

    step: int
    reason: str


class StepGuards(Hook):
    """Counts, warns, resets, goes back and stops as the recipe's section ``guards`` says.

    Args:
        settings: that section.
        objective: the owner of the variational networks, which may be reset.
        say: logs a sentence.
    """

    key = "guards"

    def __init__(self, settings: GuardsSection, objective: Objective, say: Callable[[str], None]):
        self.settings, self.objective, self.say = settings, objective, say
        self.skipped, self.roll_backs, self.resets, self.collapsed, self.returned_to = 0, 0, 0, 0, -1
        self.recent: list[int] = []
        """Skipped steps of the window."""
        self.told_zero, self.told_collapsed = False, False

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        """Raises UserError if the run must stop."""
        with run.world.together():
            trouble = self.check(run.step, metrics)
        if trouble:
            self._go_back(run, trouble)
        else:
            metrics |= self.figures()

    def went_back(self, run: Run, state: dict, repeat: bool) -> None:
        """The counters stay: they are what ends a run that goes back again and again."""

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in sorted(COUNTERS)}

    def load_state_dict(self, state: dict) -> None:
        for name in COUNTERS & state.keys():
            setattr(self, name, state[name])

    def figures(self) -> dict[str, int]:
        """For the record of a step."""
        return {"skipped": self.skipped, "roll_backs": self.roll_backs}

    def check(self, step: int, metrics: dict[str, float]) -> RollBack | None:
        """Look at the metrics of optimiser step ``step``, counted from 1.

        Returns:
            What to go back for, if the run must.

        Raises:
            UserError: the run must stop.
        """
        self._check_zero_loss(step, metrics)
        self._check_paths(step, metrics)
        diverged = self._check_variational(step, metrics.get("mi_negative_log_likelihood"))
        if not was_skipped(metrics):
            return None
        self._skip(step, metrics, diverged)
        return None if diverged else self._consider_roll_back(step)

    def take_back(self, checkpoint_step: int) -> bool:
        """Count a roll-back to ``checkpoint_step``; the skipped steps behind it are forgotten.

        Returns:
            Whether to repeat the samples since then: the first time, which is all it takes after a fault of the
            hardware. If the same stretch fails again, its samples are the reason, and the run continues without them.
        """
        repeat = checkpoint_step != self.returned_to
        self.roll_backs, self.returned_to, self.recent = self.roll_backs + 1, checkpoint_step, []
        return repeat

    def _go_back(self, run: Run, trouble: RollBack) -> None:
        """Continue from the newest checkpoint from before the trouble."""
        run.progress.mark("go back to a checkpoint", "pause")
        run.say(*run.saver.finish())
        checkpoint = checkpoint_before(run.path, trouble, run.world)
        state, repeat = checkpoint.state(), self.take_back(checkpoint.step)
        run.load(checkpoint)
        if repeat:
            with run.world.together():
                run.open_loader(state["loader"])
        if run.world.rank == 0:
            remove_later_checkpoints(run.path, checkpoint.step)
        for hook in run.hooks:
            hook.went_back(run, state, repeat)
        run.timer.reset()
        samples = "with the same samples" if repeat else "without the samples that led there twice"
        run.say(f"Going back to {checkpoint.path} {samples}: {trouble.reason}. Roll-back {self.roll_backs}.")

    def _check_zero_loss(self, step: int, metrics: dict[str, float]) -> None:
        # The contrastive terms that count; the diversity term would hide that they are all 0.
        weights = {
            "loss_path_": self.objective.settings.path_weight,
            "loss_fused": self.objective.settings.fused_weight,
            "loss_maxsim": self.objective.settings.maxsim_weight,
        }
        terms = [
            value
            for name, value in metrics.items()
            for prefix, weight in weights.items()
            if weight and name.startswith(prefix)
        ]
        if any(terms) or self.told_zero:
            return
        self.told_zero = True
        sentence = (
            f"The contrastive loss of step {step} is exactly 0, so nothing would be learned: no pair has a negative "
            "that counts, or all pairs are distinguished "
            "perfectly; check that the data has distinct targets and that the global batch holds more than one pair."
        )
        if self.settings.zero_loss == "stop":
            raise UserError(sentence)
        self.say(f"Warning: {sentence} This is said once.")

    def _check_paths(self, step: int, metrics: dict[str, float]) -> None:
        settings = self.settings.collapsed_paths
        cosine = metrics.get("path_cosine_max")
        if settings.action == "off" or cosine is None or not math.isfinite(cosine):
            return
        r2 = metrics.get("path_r2", 0.0)
        self.collapsed = self.collapsed + 1 if cosine > settings.cosine or r2 > settings.r2 else 0
        if self.collapsed < settings.steps:
            self.told_collapsed = False
            return
        if self.told_collapsed:
            return
        self.told_collapsed = True
        sentence = (
            f"Two paths are nearly the same function: in the {self.collapsed} steps up to step {step} their mean "
            f"cosine was above {settings.cosine:g} (guards.collapsed_paths.cosine; now {cosine:.4f}), or one path "
            f"predicted more than {settings.r2:g} of another (guards.collapsed_paths.r2; now {r2:.4f}); "
            "raise objective.diversity_weight or model.prefix.learning_rate, or start the prefixes further apart "
            "(model.prefix.init: normal with a larger model.prefix.init_std)."
        )
        if settings.action == "stop":
            raise UserError(sentence)
        self.say(f"Warning: {sentence}")

    def _check_variational(self, step: int, likelihood: float | None) -> bool:
        """Whether the variational networks had diverged; they are new ones then."""
        settings = self.settings.variational
        if likelihood is None or likelihood <= settings.bound:
            return False
        what = (
            f"The variational networks diverged in step {step}: their negative log-likelihood is {likelihood:.4g} "
            "nats per dimension"
        )
        if settings.action == "stop" or self.resets == settings.resets:
            again = f" They were reset {self.resets} times before (guards.variational.resets)." if self.resets else ""
            raise UserError(
                f"{what}, and guards.variational.bound is {settings.bound:g}; lower "
                "objective.mutual_information.learning_rate or "
                f"objective.mutual_information.steps, and resume from the last checkpoint.{again}"
            )
        self.resets += 1
        self.objective.reset_networks()
        self.say(
            f"Warning: {what}; they are reset, and their term has no weight until they predict again (reset "
            f"{self.resets} of at most {settings.resets})."
        )
        return True

    def _skip(self, step: int, metrics: dict[str, float], diverged: bool) -> None:
        if math.isfinite(metrics["loss"]):
            what = f"The gradient's norm in step {step} is not finite, though the loss was {metrics['loss']:.6g}"
        else:
            what = f"The loss of step {step} is not finite (mean over ranks: {metrics['loss']})"
        if self.settings.non_finite.action == "stop":
            raise UserError(f"{what}; {CURE}")
        self.skipped += 1
        if not diverged:
            self.recent = [
                *(earlier for earlier in self.recent if earlier > step - self.settings.non_finite.window_steps),
                step,
            ]
        self.say(f"Warning: {what}; no rank updated anything ({self.skipped} steps skipped so far).")

    def _consider_roll_back(self, step: int) -> RollBack | None:
        """Raises UserError if a roll-back is due and none is left."""
        settings = self.settings.non_finite
        row = 1
        while row < len(self.recent) and self.recent[-1 - row] == step - row:
            row += 1
        if row >= settings.in_a_row:
            first = step - row + 1
            reason = f"{row} steps in a row up to step {step} were not finite (guards.non_finite.in_a_row)"
        elif len(self.recent) >= settings.in_window:
            first = self.recent[0]
            reason = (
                f"{len(self.recent)} of the {step - first + 1} steps up to step {step} were not finite "
                "(guards.non_finite.in_window)"
            )
        else:
            return None
        if self.roll_backs >= settings.roll_backs:
            raise UserError(
                f"{reason[0].upper()}{reason[1:]}, after {self.roll_backs} roll-backs "
                f"(guards.non_finite.roll_backs); {CURE}"
            )
        return RollBack(first, reason)


def checkpoint_before(run: Path, request: RollBack, world: World) -> Checkpoint:
    """The newest whole checkpoint from before ``request.step``; all ranks look at its files together.

    Raises:
        UserError: there is none.
        SystemExit: the same, on ranks whose peer reports it.
    """
    for path in world.from_first([path for path in checkpoint_paths(run) if step_of(path) < request.step]):
        checkpoint, problem = open_together(path, world)
        if checkpoint is not None and problem is None:
            return checkpoint
    with world.together():
        raise UserError(
            f"{request.reason[0].upper()}{request.reason[1:]}, and {run} holds no whole checkpoint from before step "
            f"{request.step} to go back to; lower train.save_steps or raise train.save_total_limit, and {CURE}"
        )


def remove_later_checkpoints(run: Path, step: int) -> None:
    """Remove what was saved after ``step``, so that a resume does not continue from what was taken back."""
    for path in checkpoint_paths(run):
        if step_of(path) > step:
            remove_checkpoint(path)
