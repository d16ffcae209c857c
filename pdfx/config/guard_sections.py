"""The recipe's section ``guards``: what a run watches itself for, and what it does then. All default values are
ours."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pdfx.config.section import Section


class NonFiniteSection(Section):
    """A loss or a gradient that is not finite on some rank."""

    action: Literal["skip", "stop"] = "skip"
    """``skip``: no rank updates anything in that step, and training continues."""
    in_a_row: int = Field(5, ge=1)
    """After so many skipped steps one after another, the run goes back to the newest checkpoint from before them."""
    in_window: int = Field(20, ge=1)
    window_steps: int = Field(200, ge=1)
    """The same after ``in_window`` skipped steps among the last ``window_steps``."""
    roll_backs: int = Field(3, ge=0)
    """Times that a run may go back; it stops if it would have to once more."""

    @model_validator(mode="after")
    def check(self):
        if self.in_window > self.window_steps:
            raise ValueError("in_window is larger than window_steps, so it would never be reached; lower it")
        return self


class CollapsedPathsSection(Section):
    """Two paths that stay, or become, the same function."""

    action: Literal["warn", "stop", "off"] = "warn"
    cosine: float = Field(0.98, gt=-1, le=1)
    """Bound of the mean cosine between those two paths that are most alike (``path_cosine_max`` in the metrics)."""
    steps: int = Field(200, ge=1)
    """Steps one after another above it."""


class VariationalSection(Section):
    """Variational networks whose negative log-likelihood is not finite, or above a bound."""

    action: Literal["reset", "stop"] = "reset"
    """``reset``: they are reset, and so is the warm-up of the term that they serve."""
    bound: float = Field(10.0, gt=0)
    """Nats per dimension (``mi_negative_log_likelihood`` in the metrics); new networks have about 0.5."""
    resets: int = Field(3, ge=0)
    """Resets of the whole run; it stops if it would need one more."""


class GuardsSection(Section):
    non_finite: NonFiniteSection = NonFiniteSection()
    zero_loss: Literal["stop", "warn"] = "stop"
    """A loss of exactly 0, which teaches nothing."""
    collapsed_paths: CollapsedPathsSection = CollapsedPathsSection()
    variational: VariationalSection = VariationalSection()
    agreement_steps: int | None = Field(50, ge=1)
    """Steps between two comparisons of all ranks: step, position in the data, settings, metrics, samples of the
    weights. Null: only at the start."""
    stall_seconds: float | None = Field(40.0, gt=0)
    """Within a step or an evaluation, longest time without any progress on a rank (a batch, a pass, an update). A run
    that was ever slower gets five times its longest such time. Where data is behind a URL, a batch may also take as
    long as the ``data.read_`` settings allow one request with its repetitions. Null: never stops for any of these."""
    first_seconds: float = Field(300.0, gt=0, le=86_400)
    """The same for what happens for the first time, in which libraries compile and measure: the first step, and the
    first batch of an evaluation."""
    pause_seconds: float = Field(1800.0, gt=0, le=86_400)
    """The same outside of steps: loading at the start, writing a checkpoint, listing and scoring the items of an
    evaluation."""
    lost_seconds: float = Field(20.0, gt=0)
    """Longest time without a sign of life from a rank's process."""
