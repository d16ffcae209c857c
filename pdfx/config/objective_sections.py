"""The section ``objective``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pdfx.config.section import Section


class MutualInformationSection(Section):
    """vCLUB, per rank, over all ordered pairs of paths. The values are ours; the paper does not give them."""

    side: Literal["query", "target", "both"] = "both"
    hidden: int = Field(256, ge=1)
    steps: int = Field(2, ge=1)
    """Maximum-likelihood steps of the variational networks per model step."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which ``objective.diversity_weight`` rises linearly from 0; as ``train.warmup_steps`` if null."""


TEMPERATURE_BOUNDS = (0.01, 1.0)
"""Of a learned temperature; those of CLIP (Radford et al., arXiv 2103.00020), whose logit scale lies between 1 and
100."""


class ObjectiveSection(Section):
    temperature: float = Field(0.02, gt=0)
    learn_temperature: bool = False
    symmetric: bool = False
    """Also contrast each target against the queries of all ranks."""
    path_weight: float = Field(1.0, ge=0)
    """Weight of every path's InfoNCE (their sum enters the loss)."""
    fused_weight: float = Field(1.0, ge=0)
    mask_same_target: bool = True
    diversity: Literal["none", "mutual_information", "orthogonality"] = "mutual_information"
    diversity_weight: float = Field(0.01, ge=0)
    mutual_information: MutualInformationSection = MutualInformationSection()

    @model_validator(mode="after")
    def check(self):
        lowest, highest = TEMPERATURE_BOUNDS
        if self.learn_temperature and not lowest <= self.temperature <= highest:
            raise ValueError(
                f"temperature must be from {lowest:g} to {highest:g} if it is learned; choose one, or set "
                "learn_temperature to false"
            )
        if self.path_weight == 0 and self.fused_weight == 0:
            raise ValueError("path_weight and fused_weight are both 0, so nothing would be learned by contrast")
        return self
