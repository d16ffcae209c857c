"""vCLUB: a variational upper bound of the mutual information between the K embeddings of one input.

Cheng et al., "CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information" (arXiv 2006.12013), equation 13. For an
ordered pair of paths with embeddings x and y, q(y|x) = N(mu(x), diag exp(logvar(x))) is fitted by maximum likelihood
and

    I(x; y) <= 1/B sum_i log q(y_i|x_i) - 1/B^2 sum_i sum_j log q(y_j|x_i).

Legend: S sides (query, target), G = S * K * (K - 1) ordered pairs of paths, B batch, D dimension, H hidden width. One
network per pair; all of them run as batched matrix products.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from pdfx.objective.gather import all_reduce_sum

LOGVAR_BOUND = 6.0
"""Embeddings enter scaled by sqrt(D), so a dimension's mean square is about 1, and so is the variance that q starts
from. logvar may move smoothly within +-6 around that, that is, up to 99.75 % of a dimension may be explained before q
stops getting surer; without a floor, paths that collapse into one would let the variance go to 0 and the estimate to
infinity. The value is ours."""


@dataclass(frozen=True)
class Estimate:
    """What one rank's batch says.

    per_side: [S], nats, the mean over a side's ordered pairs of paths; differentiable in the embeddings.
    sums: scalars without gradient that are sums over rows, so that adding them up over ranks pools the ranks' rows.
    ``residual``: squares of y - mu(x);
        ``variation``: squares of y around its batch mean, so R^2 = 1 - residual / variation; ``gap``: nats by which log
        q(y|x) exceeds the log-likelihood of a Gaussian with the batch's own mean and variance, averaged over pairs of
        paths; ``rows``: 1.
    """

    per_side: Tensor
    sums: dict[str, Tensor]


class VariationalNetworks(nn.Module):
    """The G networks q(y|x): one hidden layer that gives mu and logvar. The architecture is ours.

    The initial weights depend on the seed and the shapes alone.
    """

    def __init__(self, sides: int, paths: int, dimension: int, hidden: int, seed: int):
        super().__init__()
        self.sides, self.paths, self.dimension = sides, paths, dimension
        groups = sides * paths * (paths - 1)
        digest = hashlib.sha256(f"variational networks {seed}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in))

        self.hidden_weight = uniform(groups, dimension, hidden, fan_in=dimension)
        self.hidden_bias = uniform(groups, 1, hidden, fan_in=dimension)
        self.output_weight = uniform(groups, hidden, 2 * dimension, fan_in=hidden)
        self.output_bias = uniform(groups, 1, 2 * dimension, fan_in=hidden)
        pairs = [(i, j) for i in range(paths) for j in range(paths) if i != j]
        flat = [(side * paths + i, side * paths + j) for side in range(sides) for i, j in pairs]
        self.register_buffer("given", torch.tensor([i for i, _ in flat]), persistent=False)
        self.register_buffer("predicted", torch.tensor([j for _, j in flat]), persistent=False)

    def negative_log_likelihood(self, embeddings: Tensor, valid: Tensor) -> Tensor:
        """[G], the sum over valid rows of -log q(y|x), without its constant. ``embeddings`` [S, B, K, D], bool
        ``valid`` [B]."""
        x, y = self._pairs(embeddings.detach())
        mean, logvar = self._predict(x, *self.parameters())
        return (_negative_log_likelihood(y, mean, logvar) * valid).sum(-1)

    def estimate(self, embeddings: Tensor, valid: Tensor) -> Estimate:
        """vCLUB of the valid rows of ``embeddings`` [S, B, K, D], with the networks held fixed. Fewer than two valid
        rows give 0 and no gradient.

        The all-pairs term is exact in O(B D): with m1 and m2 the batch means of y and y^2, mean_j (y_j - mu)^2 = m2 - 2
        mu m1 + mu^2. Subtracting (y - mu)^2 leaves (m2 - m1^2) - (y - m1)^2 + 2 (mu - m1)(y - m1), which has no
        difference of large numbers; logvar's own term cancels.
        """
        x, y = self._pairs(embeddings)
        mean, logvar = self._predict(x, *(parameter.detach() for parameter in self.parameters()))
        rows = valid.sum()
        weights = (valid.to(y.dtype) / rows.clamp_min(1))[:, None]
        average = (weights * y).sum(1, keepdim=True)
        centred = y - average
        variance = (weights * centred.square()).sum(1, keepdim=True)
        spread = variance - centred.square() + 2 * (mean - average) * centred
        information = 0.5 * (weights * spread * torch.exp(-logvar)).sum((1, 2)).view(self.sides, -1).mean(1)
        with torch.no_grad():
            likelihood = -(weights[:, 0] * _negative_log_likelihood(y, mean, logvar)).sum(1)
            # The Gaussian is held to the least variance that q itself can state.
            stated = variance.clamp_min(math.exp(-LOGVAR_BOUND))
            marginal = -0.5 * (variance / stated + stated.log()).sum((1, 2))
            residual = (valid[:, None] * (y - mean).square()).sum()
            gap = rows * (likelihood - marginal).mean()
        return Estimate(
            information, {"residual": residual, "variation": rows * variance.sum().detach(), "gap": gap, "rows": rows}
        )

    def _pairs(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, each [G, B, D]."""
        dtype = self.hidden_weight.dtype
        by_path = embeddings.to(dtype).transpose(1, 2).flatten(0, 1) * math.sqrt(self.dimension)
        return by_path[self.given], by_path[self.predicted]

    @staticmethod
    def _predict(
        x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, output_weight: Tensor, output_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = functional.gelu(torch.baddbmm(hidden_bias, x, hidden_weight))
        mean, raw = torch.baddbmm(output_bias, hidden, output_weight).chunk(2, dim=-1)
        return mean, LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND)


def _negative_log_likelihood(y: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """[G, B], summed over D, without the constant D/2 log(2 pi)."""
    return 0.5 * ((y - mean).square() * torch.exp(-logvar) + logvar).sum(-1)


def fit(
    networks: VariationalNetworks,
    optimizer: torch.optim.Optimizer,
    embeddings: Tensor,
    valid: Tensor,
    rows: int,
    steps: int,
) -> Tensor:
    """Take ``steps`` maximum-likelihood steps on the valid rows of all ranks' ``embeddings`` [S, B, K, D], which get no
    gradient.

    Gradients are summed over ranks and divided by ``rows``, the valid rows of all ranks, so the networks stay the same
    on every rank and equal those of one process with the whole batch. Returns what the last step improved on: the mean
    of -log q(y|x) / D, without its constant, over rows and pairs.
    """
    parameters = list(networks.parameters())
    for _ in range(steps):
        total = networks.negative_log_likelihood(embeddings, valid).sum()
        gradients = torch.autograd.grad(total, parameters)
        flat = all_reduce_sum(parameters_to_vector([*gradients, total])) / rows
        *gradients, mean = flat.split([*(parameter.numel() for parameter in parameters), 1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return mean.squeeze(0) / (len(networks.given) * networks.dimension)
