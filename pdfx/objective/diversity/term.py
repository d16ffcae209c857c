"""The term of the loss that keeps paths apart, and figures of how far apart they are.

Legend: S = 2 sides (query, target), B pairs on this rank, K paths, D dimension, d dimension of a projection, W world
size. Terms and estimates are stated per dimension of the embeddings, so that a weight means the same at every D.
"""

from typing import Any

import torch
from torch import Tensor

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective.diversity.batchwise import cross_covariance, kernel_dependence, orthogonality
from pdfx.objective.diversity.bounds import (
    Measured,
    Sums,
    influence,
    information,
    leave_one_out,
    quality,
    r2_of,
    spread_over_rows,
    standard_error,
    vclub,
)
from pdfx.objective.diversity.figures import alignment_of_some, centred_cosines
from pdfx.objective.diversity.linear import LinearPredictor, Prediction, cross_correlation, gaussian_information
from pdfx.objective.diversity.recent import RecentEmbeddings, Rows, draw_pairs, gather_rows, joined, pairs_apart
from pdfx.objective.diversity.variational import VariationalNetworks, fit
from pdfx.objective.gather import all_reduce_sum, rank_and_world_size

SIDES = ("query", "target")
FULL_WEIGHT_R2 = 0.02
"""Held-out R^2 from which on the term of mutual information has its full weight; it is 0 at an R^2 of 0. The value is
ours."""
MEMORY = 0.9
"""Weight of the past in the running mean of R^2 that decides on that weight."""


class Diversity:
    """The term that ``objective.diversity`` names, with what it knows of earlier steps.

    Args:
        settings: the section ``objective``.
        paths: K, 2 or more.
        dimension: D.
        seed: of projections and of the variational networks' initial weights.
    """

    def __init__(self, settings: ObjectiveSection, paths: int, dimension: int, seed: int):
        self.settings, self.paths, self.dimension, self.seed = settings, paths, dimension, seed
        self.kind = settings.diversity
        side = settings.diversity_side
        self.sides = [0, 1] if side == "both" else [SIDES.index(side)]
        self.recent = RecentEmbeddings(settings.recent.rows, settings.recent.projection, seed)
        self.r2: Tensor | None = None
        """Running mean of q's held-out R^2."""
        self.networks: VariationalNetworks | None = None
        self.optimizer: torch.optim.AdamW | None = None
        self.resets = 0
        if self.kind == "mutual_information" and settings.mutual_information.predictor == "network":
            self._start_networks()

    def _start_networks(self) -> None:
        options = self.settings.mutual_information
        size = min(self.dimension, self.settings.recent.projection)
        self.networks = VariationalNetworks(len(SIDES), self.paths, size, options.hidden, self.seed + self.resets)
        self.optimizer = torch.optim.AdamW(self.networks.parameters(), lr=options.learning_rate)

    def reset_networks(self) -> None:
        """Start with other variational networks; their term has no weight until they predict again."""
        device = None if self.networks is None else self.networks.hidden_weight.device
        self.resets += 1
        self.r2 = None
        self._start_networks()
        self.to(device or "cpu")

    def __call__(self, both: Tensor, valid: Tensor, step: int, row_weight: float | None = None) -> Measured:
        """Measure one batch. A collective if ``objective.diversity_scope`` is global.

        Args:
            both: unit embeddings [S, B, K, D], 0 in rows that do not count.
            valid: bool [B].
            step: optimiser step, for the projection and the pairs of paths that belong to it.
            row_weight: W / valid pairs of all ranks, for terms that are sums over rows; 1 / valid pairs if None.
        """
        measured = Measured()
        projection = self.recent.draw_projection(step, both)
        pairs = draw_pairs(self.paths, self.settings.diversity_pairs, self.seed, step)
        near = self.recent.near(projection, pairs) if self.recent.count else None
        predictor = LinearPredictor(near, projection) if near else None
        self._figures(measured, both.detach(), valid, pairs, predictor)
        if self.kind == "none":
            return measured
        term_rows, term_valid, share = both, valid, 1.0
        if self.settings.diversity_scope == "global":
            term_rows, term_valid, share = *gather_rows(both, valid), 1 / rank_and_world_size()[1]
        term_rows = pairs_apart(term_rows, pairs)
        if self.kind == "mutual_information":
            term = self._information(measured, term_rows, term_valid, pairs, near, predictor, share)
        else:
            term = self._dependence(term_rows, term_valid, near, projection, row_weight if share == 1 else None)
        weight = self._weight(both)
        value = term.view(len(SIDES), -1)[self.sides].mean()
        measured.loss = weight * value
        measured.metrics |= {"diversity": value, "diversity_weight": weight}
        return measured

    def _weight(self, like: Tensor) -> Tensor:
        """Of the term in this step. For mutual information it is 0 until q predicts rows that it was not fitted to:
        what a bad q reports says nothing about the paths."""
        weight = like.new_tensor(self.settings.diversity_weight)
        if self.kind != "mutual_information":
            return weight
        return weight * (0.0 if self.r2 is None else (self.r2.to(like) / FULL_WEIGHT_R2).clamp(0, 1))

    def _joined(self, near: Rows | None, both: Tensor, valid: Tensor, projection: Tensor | None) -> Rows:
        """Remembered rows, as projected, and those of a batch [S, B, K, D]."""
        return joined(near, both if projection is None else both @ projection, valid, self.settings.recent.share)

    def _dependence(
        self, both: Tensor, valid: Tensor, near: Rows | None, projection: Tensor | None, row_weight: float | None
    ) -> Tensor:
        """[S], of a term without a predictor, or [S P] of P pairs of paths."""
        if self.kind == "cross_correlation":
            return cross_correlation(self._joined(near, both, valid, projection))
        flags = valid.to(both.dtype)
        weights = flags / flags.sum().clamp_min(1)
        if self.kind == "orthogonality":
            return orthogonality(both) @ (weights if row_weight is None else row_weight * flags)
        term = {"cross_covariance": cross_covariance, "hsic": kernel_dependence}[self.kind]
        return term(Rows(both, weights))

    def _information(
        self,
        measured: Measured,
        both: Tensor,
        valid: Tensor,
        pairs: Tensor | None,
        near: Rows | None,
        predictor: LinearPredictor | None,
        share: float,
    ) -> Tensor:
        """[S], or [S P] of P pairs of paths, the term; vCLUB of these rows, which q was not fitted to, goes to
        ``measured``."""
        options = self.settings.mutual_information
        if predictor is None:
            # Nothing is known yet, so nothing is predicted.
            return both.sum() * both.new_zeros(len(SIDES))
        flags = valid.to(both.dtype)
        weights = flags / flags.sum().clamp_min(1)
        predict = predictor if self.networks is None else self._by_networks
        # About the known mean instead of its own, so that an offset of this batch pays nothing with any q and bound.
        prediction = predict(both - Rows(both, weights).mean() + pairs_apart(self.recent.known().mean(), pairs))
        estimate = information(vclub(prediction, weights), len(SIDES), weights)
        measured.metrics["mutual_information"] = estimate[self.sides].mean()
        measured.metrics |= {f"mutual_information_{SIDES[side]}": estimate[side] for side in self.sides}
        moved = influence(prediction.of_sides(len(SIDES), self.sides), weights)
        sums = spread_over_rows(moved, valid) | quality(predict(both.detach()).of_sides(len(SIDES), self.sides), valid)
        measured.sums |= {f"mi_{name}": share * value for name, value in sums.items()}
        if options.bound == "gaussian":
            return gaussian_information(self._joined(near, both, valid, predictor.projection))
        if options.bound == "l1out":
            return information(leave_one_out(prediction, weights), len(SIDES), weights)
        return estimate

    def _by_networks(self, both: Tensor) -> Prediction:
        assert self.networks is not None
        return self.networks(self._standardised(both))

    def _figures(
        self,
        measured: Measured,
        both: Tensor,
        valid: Tensor,
        pairs: Tensor | None,
        predictor: LinearPredictor | None,
    ) -> None:
        flags = valid.to(both.dtype)
        known = self.recent.known() if self.recent.count else Rows(both, flags / flags.sum().clamp_min(1))
        cosines = centred_cosines(both - known.mean(), valid)
        measured.sums |= {f"cosine_{pair}": value for pair, value in enumerate(cosines)} | {"cosine_rows": flags.sum()}
        measured.metrics["path_cka"] = alignment_of_some(known.values, known.weights > 0).mean()
        if predictor is not None:
            found = quality(predictor(pairs_apart(both, pairs)), valid)
            measured.sums |= {f"path_{name}": value for name, value in found.items()}

    def summarise(self, sums: Sums) -> dict[str, Tensor]:
        """Figures of all ranks from the sums over them, which also decide on the next step's weight.

        Returns:
            ``path_cosine`` and ``path_cosine_max`` (cosine of centred embeddings, mean over pairs of paths and that of
            the two most alike), ``path_r2`` (held-out R^2 of one path from another), ``mi_r2`` (that of the term's
            predictor) and ``mutual_information_error`` (standard error over the rows of all ranks).
        """
        rows = sums["cosine_rows"].clamp_min(1)
        pairs = self.paths * (self.paths - 1) // 2
        cosines = torch.stack([sums[f"cosine_{pair}"] for pair in range(pairs)]) / rows
        figures = {"path_cosine": cosines.mean(), "path_cosine_max": cosines.max()}
        if "path_residual" in sums:
            figures["path_r2"] = r2_of(sums, "path")
        if "mi_residual" in sums:
            figures["mi_r2"] = r2_of(sums, "mi")
            figures["mutual_information_error"] = standard_error(sums, "mi")
            self._remember_r2(figures["mi_r2"].detach())
        elif self.kind == "mutual_information":
            zero = torch.zeros_like(rows)
            figures |= dict.fromkeys(("mutual_information", "mutual_information_error", "mi_r2"), zero)
        return figures

    def _remember_r2(self, now: Tensor) -> None:
        """Take up the R^2 of a step, unless it is not finite."""
        before = torch.zeros_like(now) if self.r2 is None else self.r2.to(now)
        self.r2 = torch.where(now.isfinite(), now if self.r2 is None else MEMORY * before + (1 - MEMORY) * now, before)

    def learn(self, both: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Remember a batch of all ranks, and fit the variational networks to it if there are some. A collective.

        Call it after the batch was measured, so that no estimate is judged on what it was fitted to, and only if its
        valid rows are finite on all ranks.

        Args:
            both: [S, B, K, D] without gradient, 0 in rows that do not count.
            valid: bool [B].

        Returns:
            ``mi_negative_log_likelihood``, nats per dimension and without its constant, before the last step of the
            networks; nothing without networks.
        """
        self.recent.add(both, valid)
        if self.networks is None or self.optimizer is None:
            return {}
        rows = int(all_reduce_sum(valid.sum()))
        standardised = self._standardised(both)
        steps = self.settings.mutual_information.steps
        return {"mi_negative_log_likelihood": fit(self.networks, self.optimizer, standardised, valid, rows, steps)}

    def _standardised(self, both: Tensor) -> Tensor:
        """[S, B, K, d], by the moments of the rows at hand, in the one projection that the networks know."""
        projection = self.recent.fixed_projection(both)
        known = self.recent.known().project(projection)
        return ((both if projection is None else both @ projection) - known.mean()) / known.deviation()

    def to(self, device: torch.device | str) -> "Diversity":
        """Move what is kept."""
        self.recent.to(device)
        self.r2 = None if self.r2 is None else self.r2.to(device)
        if self.networks is not None and self.optimizer is not None:
            self.networks.to(device)
            # Loading moves each moment to where its parameter now is.
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    def kept_tensors(self) -> list[Tensor]:
        """Embeddings and networks that are kept."""
        networks = [] if self.networks is None else self.networks.parameters()
        stored = self.recent.stored
        return [*([] if stored is None else [stored.values]), *networks]

    def state_dict(self) -> dict[str, Any]:
        """What is kept of earlier steps, the same on every rank."""
        state: dict[str, Any] = {"recent": self.recent.state_dict(), "r2": self.r2, "resets": self.resets}
        if self.networks is not None and self.optimizer is not None:
            state |= {"variational": self.networks.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave. Raises UserError if it came from other paths, dimension or networks."""
        kept = state["recent"].get("values")
        shape = (self.paths, self.dimension) if kept is None else (kept.shape[2], kept.shape[3])
        if shape != (self.paths, self.dimension):
            raise UserError(
                f"The checkpoint remembers embeddings of {shape[0]} paths and {shape[1]} dimensions, but this run has "
                f"{self.paths} and {self.dimension}; resume with its model.paths and backbone, or start a new run."
            )
        shapes = _shapes(self.networks.state_dict() if self.networks is not None else {})
        saved = _shapes(state.get("variational", {}))
        if shapes != saved:
            raise UserError(
                f"The checkpoint's variational networks have the shapes {saved or 'of none at all'}, but these "
                f"settings need {shapes or 'none'}; resume with the objective.diversity, objective.mutual_information, "
                "objective.recent.projection, model.paths and backbone of the checkpoint, or start a new run."
            )
        self.recent.load_state_dict(state["recent"])
        self.r2, self.resets = state["r2"], state["resets"]
        if self.networks is not None and self.optimizer is not None:
            self.networks.load_state_dict(state["variational"])
            self.optimizer.load_state_dict(state["optimizer"])
            # The state brings the learning rate that it was saved with, and hyper-parameters are the settings'.
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.mutual_information.learning_rate


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
