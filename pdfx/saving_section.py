"""What a recipe says about its checkpoints."""

from typing import Literal

from pydantic import Field, model_validator

from pdfx.section import PathText, Section


class SavingSection(Section):
    """Part of the section ``train``."""

    save_steps: int = Field(500, ge=1)
    save_total_limit: int = Field(3, ge=1)
    """So many newest checkpoints stay, and beside them those that the next settings keep."""
    keep_steps: int | None = Field(None, ge=1)
    """Checkpoints of steps that are multiples of it stay for good."""
    metric_for_best_model: str | None = None
    """A figure of the evaluation, such as ``query_to_target/fused/recall@1``: the checkpoint with its best value stays."""
    greater_is_better: bool = True
    """Whether a greater ``metric_for_best_model`` is better."""
    save_in_background: Literal["auto"] | bool = "auto"
    """Copy the state to host memory and write it while training goes on; ``auto``: where the copies take at most half of the memory that is free."""
    resume: PathText = "auto"
    """``auto`` (the newest whole checkpoint of output_dir, if any), ``never``, or a checkpoint's directory."""
    resume_elastic: bool = False
    """Let a checkpoint be taken up by another number of ranks or under another stage of ZeRO. The global batch stays the checkpoint's:
    gradient_accumulation_steps follows."""

    @model_validator(mode="after")
    def check_steps(self):
        if self.keep_steps is not None and self.keep_steps % self.save_steps:
            raise ValueError(f"keep_steps is {self.keep_steps}, at which nothing is saved; set it to a multiple of save_steps, which is {self.save_steps}")
        return self
