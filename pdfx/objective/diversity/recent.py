"""Embeddings of the last steps on all ranks: what a batch is standardised by, predicted from and compared with.

A single batch holds too few rows to say how D dimensions depend on D others. The rows of the last steps do, and they
are fixed, so they cost no graph. A batch takes part with its gradient, so the encoder cannot move away from what was
measured, which it can from a network that has to learn first.

Legend: S sides (query, target), B rows of a batch, N rows kept, n rows that are looked at, K paths, D dimension of an
embedding, d dimension of its projection.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.objective.gather import all_gather

ROWS_PER_DIMENSION = 8
"""Rows that are known for each projected dimension, at least: with fewer, a prediction is mostly chance. The value is
ours."""


@dataclass(frozen=True)
class Rows:
    """Embeddings with weights that sum to 1.

    Attributes:
        values: [S, n, K, d].
        weights: [n]; 0 for a row that does not count.
    """

    values: Tensor
    weights: Tensor

    def centred(self) -> Tensor:
        """[S, n, K, d] without their mean."""
        return self.values - self.mean()

    def mean(self) -> Tensor:
        """[S, 1, K, d]."""
        return torch.einsum("n,snkd->skd", self.weights, self.values).unsqueeze(1)

    def deviation(self) -> Tensor:
        """[S, 1, K, d], the standard deviation of each dimension, above 0."""
        variance = torch.einsum("n,snkd->skd", self.weights, self.centred().square()).unsqueeze(1)
        # Relative to the whole vector, so that a dimension that never moves stays 0 and does not become noise.
        floor = 1e-6 * variance.mean(-1, keepdim=True) + 1e-20
        return (variance + floor).sqrt()

    def project(self, projection: Tensor | None) -> "Rows":
        return self if projection is None else Rows(self.values @ projection, self.weights)


def joined(known: Rows | None, both: Tensor, valid: Tensor, share: float) -> Rows:
    """Remembered rows and those of a batch [S, B, K, d], whose valid ones together weigh ``share``, or as much as their
    number if that is more."""
    batch = valid.to(both.dtype)
    rows = batch.sum()
    own = batch / rows.clamp_min(1)
    if known is None:
        return Rows(both, own)
    kept = (known.weights > 0).sum()
    weight = torch.where(rows > 0, (rows / (rows + kept).clamp_min(1)).clamp_min(share), 0)
    weight = torch.where(kept > 0, weight, 1)
    weights = torch.cat([(1 - weight) * known.weights, weight * own])
    return Rows(torch.cat([known.values, both], dim=1), weights)


def draw_pairs(paths: int, count: int | None, seed: int, step: int) -> Tensor | None:
    """[P, 2]: ``count`` different unordered pairs of paths, drawn at random for this step; None if all are wanted. Each
    pair is as likely as any other, so a mean over them is on average the mean over all."""
    pairs = torch.combinations(torch.arange(paths))
    if count is None or count >= len(pairs):
        return None
    return pairs[torch.randperm(len(pairs), generator=_generator(f"pairs of paths {seed} {step}"))[:count]]


def pairs_apart(rows: Tensor, pairs: Tensor | None) -> Tensor:
    """[S P, n, 2, d]: each of the ``pairs`` [P, 2] of paths of ``rows`` [S, n, K, d] as if it were a side with two
    paths; the rows themselves if ``pairs`` is None."""
    if pairs is None:
        return rows
    return rows[:, :, pairs.to(rows.device)].transpose(1, 2).flatten(0, 1)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def gather_rows(both: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [S, W * B, K, D] of all ranks, differentiable, and which of them count, from [S, B, K, D] and [B]."""
    rows, flags = all_gather([both.transpose(0, 1).contiguous(), valid.to(both.dtype)])
    return rows.transpose(0, 1), flags > 0


class RecentEmbeddings:
    """The last N rows of all ranks, alike on every rank.

    Args:
        capacity: N.
        projection: most dimensions d that a dependence is measured in.
        seed: of the projections.
    """

    def __init__(self, capacity: int, projection: int, seed: int):
        self.capacity, self.projection, self.seed = capacity, projection, seed
        self.stored: Rows | None = None
        """Values [S, N, K, D] with weights 1 or 0; a row is overwritten by the one that comes N rows later."""
        self.written = 0
        """Rows that ever came, those that do not count included."""

    @property
    def count(self) -> int:
        """Rows at hand."""
        return min(self.written, self.capacity)

    @torch.no_grad()
    def add(self, both: Tensor, valid: Tensor) -> None:
        """Keep a batch of all ranks. A collective.

        Args:
            both: [S, B, K, D], finite; those of rows that do not count are 0.
            valid: bool [B].
        """
        values, flags = gather_rows(both.detach(), valid)
        values, flags = values[:, -self.capacity :], flags[-self.capacity :]
        if self.stored is None:
            room = values.new_zeros(values.shape[0], self.capacity, *values.shape[2:])
            self.stored = Rows(room, room.new_zeros(self.capacity))
        places = (torch.arange(len(flags), device=flags.device) + self.written) % self.capacity
        self.stored.values[:, places] = values
        self.stored.weights[places] = flags.to(values.dtype)
        self.written += len(flags)

    def known(self) -> Rows:
        """The rows at hand, equally weighted, without gradient. Raises ValueError if there are none."""
        if self.stored is None:
            raise ValueError("no embeddings are known yet")
        valid = self.stored.weights[: self.count]
        return Rows(self.stored.values[:, : self.count], valid / valid.sum().clamp_min(1))

    def near(self, projection: Tensor | None, pairs: Tensor | None) -> Rows:
        """The rows at hand, projected, of ``pairs`` of paths as in ``pairs_apart``; other paths are not projected."""
        known = self.known()
        if pairs is not None:
            used, pairs = pairs.unique(return_inverse=True)
            known = Rows(known.values[:, :, used.to(known.values.device)], known.weights)
        near = known.project(projection)
        return Rows(pairs_apart(near.values, pairs), near.weights)

    def draw_projection(self, step: int, like: Tensor) -> Tensor | None:
        """[D, d], another one at each step, so that dependence cannot hide in the dimensions that are left out; None
        if all D dimensions are looked at.

        Args:
            step: optimiser step.
            like: [..., D], of the dtype and device wanted.
        """
        dimension = like.shape[-1]
        size = max(1, min(dimension, self.projection, self.count // ROWS_PER_DIMENSION))
        if size == dimension:
            return None
        return self._random(f"projection {self.seed} {step}", size, like)

    def fixed_projection(self, like: Tensor) -> Tensor | None:
        """[D, d], the same at each step, for what has to learn; None if d is D. Dependence can hide in the dimensions
        that it leaves out."""
        if like.shape[-1] <= self.projection:
            return None
        return self._random(f"fixed projection {self.seed}", self.projection, like)

    @staticmethod
    def _random(name: str, size: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape[-1], size, generator=_generator(name)).to(like) / math.sqrt(like.shape[-1])

    def to(self, device: torch.device | str) -> "RecentEmbeddings":
        if self.stored is not None:
            self.stored = Rows(self.stored.values.to(device), self.stored.weights.to(device))
        return self

    def state_dict(self) -> dict:
        if self.stored is None:
            return {}
        values, valid = self.stored.values[:, : self.count], self.stored.weights[: self.count]
        return {"values": values, "valid": valid, "written": self.written}

    def load_state_dict(self, state: dict) -> None:
        """Load what ``state_dict`` gave. If another number of rows was kept then, the newest ones that fit stay."""
        self.stored, self.written = None, 0
        if not state:
            return
        values, valid, self.written = state["values"], state["valid"], state["written"]
        if len(valid) != self.capacity:
            # Oldest first. As many as there is room for stay in their places: sums in another order round differently.
            turn = self.written % len(valid)
            values, valid = values.roll(-turn, 1)[:, -self.capacity :], valid.roll(-turn)[-self.capacity :]
            self.written = len(valid)
        room = values.new_zeros(values.shape[0], self.capacity, *values.shape[2:])
        self.stored = Rows(room, valid.new_zeros(self.capacity))
        self.stored.values[:, : self.count], self.stored.weights[: self.count] = values, valid
