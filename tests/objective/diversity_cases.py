"""Embeddings and settings that the tests of the diversity term share."""

import torch
from torch.nn.functional import normalize

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.term import Diversity
from pdfx.objective.diversity.variational import VariationalNetworks

TERMS: dict[str, dict] = {
    "gaussian": {},
    "vclub, linear": {"mutual_information": {"bound": "vclub"}},
    "vclub, network": {"mutual_information": {"bound": "vclub", "predictor": "network", "hidden": 7}},
    "l1out, linear": {"mutual_information": {"bound": "l1out"}},
    "l1out, network": {"mutual_information": {"bound": "l1out", "predictor": "network", "hidden": 7}},
    "cross_correlation": {"diversity": "cross_correlation"},
    "cross_covariance": {"diversity": "cross_covariance"},
    "hsic": {"diversity": "hsic"},
    "orthogonality": {"diversity": "orthogonality"},
}
"""Settings of ``objective`` for each term."""


def embeddings_of(*shape: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors [..., D] in float64 whose paths, the last but one dimension, depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(*shape[:-2], 1, shape[-1], generator=generator, dtype=torch.float64)
    own = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return normalize(common + own, dim=-1)


def give_predictions(networks: VariationalNetworks) -> None:
    """A last layer that is not 0, so that mean and variance depend on what is given, as after many steps."""
    generator = torch.Generator().manual_seed(5)
    for parameter in (networks.output_weight, networks.output_bias):
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def diversity_of(settings: dict, paths: int = 3, dimension: int = 6, remembered: int = 64, seed: int = 0) -> Diversity:
    """The term in float64 with full weight, after ``remembered`` rows."""
    section = ObjectiveSection.model_validate({"diversity_weight": 0.5} | settings)
    diversity = Diversity(section, paths, dimension, seed)
    if diversity.networks is not None:
        diversity.networks.double()
    for part in range(remembered // 16):
        diversity.learn(embeddings_of(2, 16, paths, dimension, seed=100 + part), torch.ones(16, dtype=torch.bool))
    if diversity.networks is not None and remembered:
        give_predictions(diversity.networks)
    diversity.r2 = torch.tensor(1.0, dtype=torch.float64) if remembered else None
    return diversity
