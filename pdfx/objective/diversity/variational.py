"""Learned predictors q(y|x) = N(mu(x), diag exp(logvar(x))) of one path from another.

Legend: S sides (query, target), G = S * K * (K - 1) ordered pairs of paths, B rows, d dimension, H hidden width. One
network per pair; all of them run as batched matrix products.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from pdfx.objective.diversity.linear import Prediction
from pdfx.objective.gather import all_reduce_sum

LOGVAR_BOUND = 6.0
"""logvar may move smoothly within +-6 around 0, the variance of a standardised dimension: up to 99.75 % of a dimension
may be explained before q stops getting surer. Without a floor, paths that collapse into one would let the variance go
to 0 and the estimate to infinity. The value is ours."""


class VariationalNetworks(nn.Module):
    """The G networks q(y|x): one hidden layer that gives mu and logvar. The architecture is ours.

    The last layer starts at zero, so q starts as the marginal of standardised embeddings: R^2 and every estimate are 0.
    The initial weights depend on the seed and the shapes alone.
    """

    def __init__(self, sides: int, paths: int, dimension: int, hidden: int, seed: int):
        super().__init__()
        self.sides, self.paths, self.dimension = sides, paths, dimension
        groups = sides * paths * (paths - 1)
        digest = hashlib.sha256(f"variational networks {seed}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(dimension))

        self.hidden_weight = uniform(groups, dimension, hidden)
        self.hidden_bias = uniform(groups, 1, hidden)
        self.output_weight = nn.Parameter(torch.zeros(groups, hidden, 2 * dimension))
        self.output_bias = nn.Parameter(torch.zeros(groups, 1, 2 * dimension))
        pairs = [(i, j) for i in range(paths) for j in range(paths) if i != j]
        flat = [(side * paths + i, side * paths + j) for side in range(sides) for i, j in pairs]
        self.given, self.predicted = [i for i, _ in flat], [j for _, j in flat]

    def forward(self, standardised: Tensor, frozen: bool = True) -> Prediction:
        """Predict the rows of ``standardised`` [S, B, K, d], which keep their gradient.

        Args:
            frozen: no gradient reaches the networks.
        """
        by_path = standardised.to(self.hidden_weight.dtype).transpose(1, 2).flatten(0, 1)
        given, observed = by_path[self.given], by_path[self.predicted]
        parameters = (parameter.detach() if frozen else parameter for parameter in self.parameters())
        hidden_weight, hidden_bias, output_weight, output_bias = parameters
        hidden = functional.gelu(torch.baddbmm(hidden_bias, given, hidden_weight))
        mean, raw = torch.baddbmm(output_bias, hidden, output_weight).chunk(2, dim=-1)
        return Prediction(mean, LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND), observed)


def negative_log_likelihood(prediction: Prediction) -> Tensor:
    """[G, B], summed over dimensions, without the constant d/2 log(2 pi)."""
    squares = (prediction.observed - prediction.mean).square() * torch.exp(-prediction.logvar)
    return 0.5 * (squares + prediction.logvar).sum(-1)


def fit(
    networks: VariationalNetworks,
    optimizer: torch.optim.Optimizer,
    standardised: Tensor,
    valid: Tensor,
    rows: int,
    steps: int,
) -> Tensor:
    """Take ``steps`` maximum-likelihood steps on the valid rows of all ranks' ``standardised`` [S, B, K, d], which get
    no gradient.

    Gradients are summed over ranks and divided by ``rows``, the valid rows of all ranks, so the networks stay the same
    on every rank and equal those of one process with the whole batch. Returns what the last step improved on: the mean
    of -log q(y|x) / d, without its constant, over rows and pairs.
    """
    parameters = list(networks.parameters())
    mean = standardised.new_zeros(1)
    for _ in range(steps):
        total = (negative_log_likelihood(networks(standardised.detach(), frozen=False)) * valid).sum()
        gradients = torch.autograd.grad(total, parameters)
        flat = all_reduce_sum(parameters_to_vector([*gradients, total])) / rows
        *parts, mean = flat.split([*(parameter.numel() for parameter in parameters), 1])
        for parameter, gradient in zip(parameters, parts, strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return mean.squeeze(0) / (len(networks.given) * networks.dimension)
