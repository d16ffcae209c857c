"""The section ``objective``: what is learned, and what keeps the paths apart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pdfx.config.section import Section


class RecentSection(Section):
    """Embeddings of the last steps, which the diversity terms and the figures about paths are measured with. The values
    are ours."""

    rows: int = Field(2048, ge=1)
    """Pairs of all ranks that are remembered: ``rows x 2 x model.paths x D`` numbers on each device and in a
    checkpoint."""
    share: float = Field(0.25, gt=0, le=1)
    """Weight of the current batch beside them, at least: the larger, the faster a term follows the encoder, and the
    noisier it is."""
    projection: int = Field(128, ge=1)
    """Most dimensions that a dependence is measured in. Embeddings with more are projected, another way at each
    step."""


class MutualInformationSection(Section):
    """An estimate of the mutual information between paths. The values are ours; the paper does not give them."""

    bound: Literal["gaussian", "vclub", "l1out"] = "gaussian"
    """What is minimised. ``gaussian``: information that a linear map explains, solved again in every step.
    ``vclub`` and ``l1out``: estimates by a predictor that is held fixed."""
    predictor: Literal["linear", "network"] = "linear"
    """``linear``: least squares on the remembered pairs. ``network``: one hidden layer, trained beside the model."""
    hidden: int = Field(256, ge=1)
    steps: int = Field(2, ge=1)
    """Maximum-likelihood steps of the networks per model step."""
    learning_rate: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def check(self):
        if self.bound == "gaussian" and self.predictor == "network":
            raise ValueError("predictor 'network' belongs to bound 'vclub' or 'l1out'; set bound, or predictor: linear")
        return self


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
    maxsim_weight: float = Field(0.0, ge=0)
    """Weight of the InfoNCE of MaxSim: each path of one side takes the best path of the other."""
    maxsim_budgets: list[Annotated[int, Field(ge=1)]] = []
    """Numbers of leading paths, over which MaxSim's InfoNCE is averaged, so that so few paths are usable alone. Empty:
    all paths only."""
    distillation_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy from the fused score's distribution over candidates to that of each path (mean over
    paths)."""
    mask_same_target: bool = True
    diversity: Literal[
        "none", "mutual_information", "cross_correlation", "cross_covariance", "hsic", "orthogonality"
    ] = "mutual_information"
    """The term that keeps paths apart; what each one measures, costs and misses is in docs/method.md."""
    diversity_weight: float = Field(1.0, ge=0)
    """Weight of the term per dimension of the embeddings, so that it means the same at every dimension. Mutual
    information has it only while its predictor is right on pairs that it was not fitted to."""
    diversity_side: Literal["query", "target", "both"] = "both"
    diversity_scope: Literal["rank", "global"] = "rank"
    """The pairs of a step that the term is about: those of each rank, or those of all ranks, whose update does not
    depend on the number of ranks."""
    diversity_pairs: int | None = Field(None, ge=1)
    """Pairs of paths that the term looks at in a step, drawn again in each step, alike on all ranks; all K (K - 1) / 2
    if not set. On average over steps the term is the same, and it costs less if there are many paths."""
    mutual_information: MutualInformationSection = MutualInformationSection()
    recent: RecentSection = RecentSection()

    @model_validator(mode="after")
    def check(self):
        lowest, highest = TEMPERATURE_BOUNDS
        if self.learn_temperature and not lowest <= self.temperature <= highest:
            raise ValueError(
                f"temperature must be from {lowest:g} to {highest:g} if it is learned; choose one, or set "
                "learn_temperature to false"
            )
        if self.diversity_pairs is not None and self.mutual_information.predictor == "network":
            raise ValueError(
                "diversity_pairs belongs to terms without a network, which learns all pairs; set "
                "mutual_information.predictor to linear, or leave diversity_pairs out"
            )
        if self.path_weight == self.fused_weight == self.maxsim_weight == 0:
            raise ValueError(
                "path_weight, fused_weight and maxsim_weight are 0, so nothing would be learned by contrast"
            )
        return self
