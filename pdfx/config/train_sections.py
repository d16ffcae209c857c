"""The sections ``train`` and ``guards``: how a run trains, and what it watches itself for (with values of ours)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pdfx.config.section import LocalPath, PathText, Section


class SavingSection(Section):
    """Part of the section ``train``."""

    save_steps: int = Field(500, ge=1)
    save_total_limit: int = Field(3, ge=1)
    """So many newest checkpoints stay, and beside them those that the next settings keep."""
    keep_steps: int | None = Field(None, ge=1)
    """Checkpoints of steps that are multiples of it stay for good."""
    metric_for_best_model: str | None = None
    """A figure of the evaluation, such as ``query_to_target/fused/recall@1``: the checkpoint with its best value
    stays."""
    greater_is_better: bool = True
    """Whether a greater ``metric_for_best_model`` is better."""
    save_in_background: Literal["auto"] | bool = "auto"
    """Copy the state to host memory and write it while training continues; ``auto``: if the copies take at most half
    of the memory that is free."""
    resume: PathText = "auto"
    """``auto`` (the newest whole checkpoint of output_dir, if any), ``never``, or a checkpoint's directory."""
    resume_elastic: bool = False
    """Allow a resume with another number of ranks or under another stage of ZeRO. The global batch stays
    the checkpoint's: gradient_accumulation_steps follows."""

    @model_validator(mode="after")
    def check_steps(self):
        if self.keep_steps is not None and self.keep_steps % self.save_steps:
            raise ValueError(
                f"keep_steps is {self.keep_steps}, at which nothing is saved; set it to a multiple of save_steps, "
                f"which is {self.save_steps}"
            )
        return self


class TrainSection(SavingSection):
    output_dir: LocalPath
    deepspeed: LocalPath
    """A DeepSpeed JSON, or the name of a shipped one: ``zero1``, ``zero2``, ``zero2_offload``, ``zero3`` or
    ``zero3_offload``."""
    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    per_device_train_batch_size: int = Field(ge=1)
    """Pairs that one rank embeds at once, unless ``chunk_tokens`` says otherwise."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Chunks of that many pairs whose pairs are all negatives of one another: the update is that of a batch so many
    times larger."""
    chunk_tokens: int | None = Field(None, ge=1)
    """Tokens of one forward pass at most, padding not counted, each path counted. A rank's batch (the product of the
    two settings above) is then cut by length, not by pairs."""
    chunk_paths: int | None = Field(None, ge=1)
    """Paths that one forward pass runs at most; all if null. The vision tower runs again for each group of paths,
    unless ``model.cache_vision`` is set."""
    gradient_reduction: Literal["auto", "step", "chunk"] = "auto"
    """Sum gradients over ranks once per ``step`` (less communication) or after each ``chunk`` (less memory under ZeRO 2
    and 3: a rank then never holds all gradients whole). ``auto``: by the memory they take."""
    learning_rate: float = Field(2e-5, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the learning rate rises linearly; if null, a tenth of the run's steps and 100 at most."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0)
    """0 switches clipping off."""
    bf16: bool = True
    seed: int = Field(42, ge=0)
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on ``data.evaluation``; if null, there is one after the last step."""
    tensorboard: bool = True
    peak_tflops: float | Literal["measure"] = "measure"
    """What one device can do at most, in 10^12 FLOPs per second (989 for bf16 on an H100 SXM), for the share of it that
    training uses (MFU); ``measure``: that of a large matrix product at the start of the run on GPUs. On CPUs MFU is
    shown only if a number is given."""
    hooks: list[LocalPath] = []
    """Hooks of your own, each ``FILE.py:CLASS`` (``docs/hooks.md``): Python code, so only with
    ``model.trust_remote_code``."""
    profile_steps: int | None = Field(None, ge=1)
    """Write a torch profiler trace of that many steps on rank 0 into output_dir (``profile.json``)."""

    @model_validator(mode="after")
    def check(self):
        if self.peak_tflops != "measure" and self.peak_tflops <= 0:
            raise ValueError("peak_tflops must be more than 0, or 'measure'")
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("set exactly one of max_steps and num_train_epochs")
        if self.metric_for_best_model is not None and (self.eval_steps is None or self.save_steps % self.eval_steps):
            raise ValueError(
                "metric_for_best_model needs an evaluation at each checkpoint; set eval_steps to a number that "
                "divides save_steps"
            )
        return self


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
    """Bound of the mean cosine between those two paths that are most alike (``path_cosine_max`` in the metrics), of
    embeddings without their means."""
    r2: float = Field(0.995, gt=0, le=1)
    """Bound of the share of a path that a linear map of another one predicts (``path_r2`` in the metrics)."""
    steps: int = Field(200, ge=1)
    """Steps one after another above one of them."""


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
