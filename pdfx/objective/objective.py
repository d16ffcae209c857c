"""The training loss of one step, on embeddings.

    loss = path_weight * sum_k InfoNCE_k + fused_weight * InfoNCE_fused + weight(step) * diversity

The loss of rank r is L_r with mean over ranks = the global loss and sum over ranks s of dL_s / dE_r = W * d(global
loss) / dE_r: what an engine that averages gradients over ranks turns into the update of one process with the whole
batch. The mutual-information term is the exception by its nature: it is estimated on each rank's own pairs, and the
global loss holds the mean of these W estimates.

Legend: B pairs on this rank, K paths, M hard negatives per pair, D dimension of a path, F of the fused embedding, W
world size, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective.contrastive import Exclusion, info_nce
from pdfx.objective.diversity import orthogonality_penalty, pair_cosines
from pdfx.objective.gather import all_gather, all_reduce_sum, rank_and_world_size
from pdfx.objective.mutual_information import VariationalNetworks, fit


@dataclass(frozen=True)
class PairEmbeddings:
    """Unit embeddings of one rank's pairs and hard negatives, of one kind: those per path or the fused ones.

    Attributes:
        query: [B, K, D] per path, [B, F] fused.
        target: as ``query``.
        negatives: [B, M, K, D] per path, [B, M, F] fused.
    """

    query: Tensor
    target: Tensor
    negatives: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairEmbeddings":
        return PairEmbeddings(function(self.query), function(self.target), function(self.negatives))


@dataclass(frozen=True)
class PairIdentities:
    """What the targets and hard negatives of one rank's pairs are.

    Attributes:
        target_ids: int64 [B]; equal ones are the same thing.
        negative_ids: int64 [B, M], comparable with ``target_ids``.
        valid: bool [B]; a pair that is not counts nowhere, whatever its embeddings hold.
        negative_valid: bool [B, M], the same for hard negatives.
    """

    target_ids: Tensor
    negative_ids: Tensor
    valid: Tensor
    negative_valid: Tensor


@dataclass(frozen=True)
class Pairs:
    """Who is whose negative: for each direction what its rows exclude, and how much a valid row of this rank weighs."""

    valid: Tensor  # bool [B]
    weight: float  # W / valid pairs of all ranks
    to_targets: Exclusion
    to_queries: Exclusion


class Objective:
    """Contrast over all ranks, per path and fused, and a term that keeps the paths apart.

    Args:
        settings: weights, temperature options and the diversity term.
        paths: K. With one path there is nothing to keep apart, and no diversity term.
        dimension: D.
        seed: of the variational networks' initial weights.
        matryoshka_dims: leading dimensions that are contrasted as embeddings of their own, re-normalised; each InfoNCE
            is then the mean over these and the full embedding. They cut the fused embedding likewise.

    Raises:
        UserError: a Matryoshka dimension is not a leading part of D.
    """

    block_rows: int | None = None
    """Rows contrasted at once (see ``info_nce``)."""

    def __init__(self, settings: ObjectiveSection, paths: int, dimension: int, seed: int, matryoshka_dims: list[int]):
        wrong = [size for size in matryoshka_dims if not 1 <= size <= dimension]
        if wrong:
            raise UserError(
                f"model.matryoshka_dims holds {wrong[0]}, but the embeddings have {dimension} dimensions; choose "
                f"values from 1 to {dimension}."
            )
        self.settings = settings
        self.paths = paths
        self.matryoshka_dims = sorted(set(matryoshka_dims) - {dimension})
        self.diversity = settings.diversity if paths > 1 else "none"
        self.variational: VariationalNetworks | None = None
        self.optimizer: torch.optim.AdamW | None = None
        self.seed, self.resets, self.fitted_since = seed, 0, 0
        if self.diversity == "mutual_information":
            side = settings.mutual_information.side
            self.sides = ["query", "target"] if side == "both" else [side]
            self._start_variational(dimension)

    def _start_variational(self, dimension: int) -> None:
        options = self.settings.mutual_information
        self.variational = VariationalNetworks(
            len(self.sides), self.paths, dimension, options.hidden, self.seed + self.resets
        )
        self.optimizer = torch.optim.AdamW(self.variational.parameters(), lr=options.learning_rate)

    def reset_variational(self, step: int) -> None:
        """Reset the variational networks before optimiser step ``step`` (0 is the first), with other initial
        weights; the warm-up begins again there."""
        self.resets, self.fitted_since, device = self.resets + 1, step, self.variational.hidden_weight.device
        self._start_variational(self.variational.dimension)
        self.to(device)

    def to(self, device: torch.device | str) -> "Objective":
        """Move the variational networks and their optimiser's state."""
        if self.variational is not None:
            self.variational.to(device)
            # Loading moves each moment to where its parameter now is.
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    def state_dict(self) -> dict[str, Any]:
        """The variational networks and their optimiser, the same on every rank; empty if the settings use none."""
        if self.variational is None:
            return {}
        networks = {"variational": self.variational.state_dict(), "optimizer": self.optimizer.state_dict()}
        return networks | {"resets": self.resets, "fitted_since": self.fitted_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave. Raises UserError if it came from other objective settings, paths or
        dimension."""
        shapes = (
            {name: tuple(value.shape) for name, value in self.variational.state_dict().items()}
            if self.variational is not None
            else {}
        )
        saved = {name: tuple(value.shape) for name, value in state.get("variational", {}).items()}
        if shapes != saved:
            raise UserError(
                f"The checkpoint's variational networks have the shapes {saved or 'of none at all'}, but these "
                f"settings need {shapes or 'none'}; resume with the objective.diversity, objective.mutual_information, "
                "model.paths and backbone of the checkpoint, or start a new run."
            )
        if self.variational is not None:
            self.variational.load_state_dict(state["variational"])
            self.optimizer.load_state_dict(state["optimizer"])
            # The state brings the learning rate that it was saved with, and hyper-parameters are the settings'.
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.mutual_information.learning_rate
            self.resets, self.fitted_since = state.get("resets", 0), state.get("fitted_since", 0)

    def diversity_weight(self, step: int) -> float:
        """The weight of the diversity term at optimiser step ``step`` (0 is the first). For mutual information it rises
        linearly from 0, while q learns."""
        warmup = self.settings.mutual_information.warmup_steps if self.diversity == "mutual_information" else 0
        return self.settings.diversity_weight * (min(1.0, (step - self.fitted_since) / warmup) if warmup else 1.0)

    def fit_variational(self, query: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Fit the variational networks to detached ``query`` and ``target`` [B, K, D] of all ranks for the set number
        of steps; nothing if there are none, or if a valid pair of some rank is not finite, which would spoil
        them for good.

        Returns:
            ``mi_negative_log_likelihood``: nats per dimension, without its constant, before the last step.

        Raises:
            UserError: no pair of any rank is valid.
        """
        if self.variational is None:
            return {}
        sides = self._sides(_keep(query.detach(), valid), _keep(target.detach(), valid))
        rows, broken = all_reduce_sum(torch.stack([valid.sum(), (~sides.isfinite()).sum()])).tolist()
        _require_valid(rows)
        if broken:
            return {}
        with torch.autocast(query.device.type, enabled=False):
            loss = fit(self.variational, self.optimizer, sides, valid, rows, self.settings.mutual_information.steps)
        return {"mi_negative_log_likelihood": loss}

    def __call__(
        self,
        paths: PairEmbeddings,
        fused: PairEmbeddings,
        identities: PairIdentities,
        log_temperature: Tensor,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank and metrics of all ranks. A collective: every rank calls it with the same B and M.

        Args:
            paths: embeddings per path.
            fused: embeddings fused of all paths.
            identities: what is not a negative of which query, and what counts nowhere.
            log_temperature: scalar; a rank's gradient of it is that of its own loss, so the mean over ranks is that of
                the global loss.
            step: optimiser step, for the warm-up.

        Returns:
            The scalar loss (float32, or float64 if the embeddings are), differentiable in every embedding and
            ``log_temperature``, and detached scalars that are alike on every rank: ``loss`` and its parts
            ``loss_path_k``, ``loss_fused``, ``mutual_information`` (nats, and per side), ``orthogonality``; ``mi_r2``
            and ``mi_log_likelihood_gap`` (nats per pair of paths), the quality of q; ``diversity_weight``;
            ``path_cosine``, the mean over pairs of paths and both sides, and ``path_cosine_max``, that of the two paths
            that are most alike; ``accuracy``, how often the fused target beats all the query's negatives strictly;
            ``temperature``.

        Raises:
            UserError: no pair of any rank is valid.
        """
        dtype = torch.promote_types(paths.query.dtype, torch.float32)
        counting = identities.negative_valid & identities.valid[:, None]
        identities = replace(identities, negative_valid=counting)
        with torch.autocast(paths.query.device.type, enabled=False):
            paths = _local(paths, identities, dtype)
            fused = _local(fused, identities, dtype).map(lambda embeddings: embeddings.unsqueeze(-2))
            pairs = self._pairs(identities)
            terms, metrics = self._contrast(paths, fused, pairs, log_temperature.to(dtype))
            pooled, cosines = {}, paths.query.new_zeros(0)
            if self.paths > 1:
                both = torch.stack([paths.query, paths.target])
                cosines = _average(pair_cosines(both.detach().flatten(0, 1)).unflatten(0, (2, -1)).mean(0), pairs)
            if self.diversity != "none":
                weight = self.diversity_weight(step)
                diversity, parts, pooled = self._diversity(both, pairs)
                terms.append(weight * diversity)
                metrics |= parts | {"diversity_weight": both.new_tensor(weight)}
            loss = torch.stack(terms).sum()
            metrics = _reduce(
                {"loss": loss, **metrics, "temperature": log_temperature.exp().to(dtype)}, pooled, cosines
            )
        return loss, metrics

    def _pairs(self, own: PairIdentities) -> Pairs:
        """Gather identities and validity of all ranks: those of the B targets of each rank, then those of its B * M
        negatives."""
        rank, world_size = rank_and_world_size()
        negatives = own.negative_ids.flatten(), own.negative_valid.long().flatten()
        everything = all_gather([own.target_ids, own.valid.long(), *negatives])
        all_targets, all_valid, all_negatives, all_negative_valid = everything
        pool_ids = torch.cat([all_targets, all_negatives])
        pool_valid = torch.cat([all_valid, all_negative_valid]).bool()
        count = _require_valid(int(all_valid.sum()))
        start, masks = rank * len(own.valid), self.settings.mask_same_target
        return Pairs(
            own.valid,
            world_size / count,
            Exclusion(start, pool_valid, *((own.target_ids, pool_ids) if masks else ())),
            Exclusion(start, all_valid.bool(), *((own.target_ids, all_targets) if masks else ())),
        )

    def _contrast(
        self, paths: PairEmbeddings, fused: PairEmbeddings, pairs: Pairs, log_temperature: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The weighted contrastive terms of the loss, and the metrics of all of them, in one gather of embeddings."""
        symmetric = self.settings.symmetric
        weights = {"path": self.settings.path_weight, "fused": self.settings.fused_weight}
        kinds = {"path": paths, "fused": fused}
        pools = iter(
            all_gather(
                [
                    x
                    for kind in kinds.values()
                    for x in (kind.target, kind.negatives, *([kind.query] if symmetric else []))
                ]
            )
        )
        terms, metrics = [], {}
        for name, local in kinds.items():
            candidates = torch.cat([next(pools), next(pools)])
            queries = next(pools) if symmetric else None
            # A kind of weight 0 is only looked at.
            with torch.set_grad_enabled(torch.is_grad_enabled() and weights[name] > 0):
                losses, hits = self._info_nce(local, candidates, queries, pairs, log_temperature)
            metrics |= (
                {f"loss_path_{k}": value for k, value in enumerate(losses)}
                if name == "path"
                else {"loss_fused": losses[0]}
            )
            if name == "fused":
                metrics["accuracy"] = _average(hits[:, 0].to(losses.dtype), pairs)
            if weights[name] > 0:
                terms.append(weights[name] * losses.sum())
        return terms, metrics

    def _info_nce(
        self, local: PairEmbeddings, candidates: Tensor, queries: Tensor | None, pairs: Pairs, log_temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses [K] averaged as by ``_average`` and over directions and leading dimensions, and hits [B, K] of the
        full embeddings from queries to targets."""
        weights = pairs.weight * pairs.valid.to(local.query.dtype)
        losses, hits = [], []
        for size in (None, *self.matryoshka_dims):
            loss, hit = info_nce(
                _lead(local.query, size),
                _lead(candidates, size),
                log_temperature,
                pairs.to_targets,
                weights,
                self.block_rows,
            )
            if queries is not None:
                back, _ = info_nce(
                    _lead(local.target, size),
                    _lead(queries, size),
                    log_temperature,
                    pairs.to_queries,
                    weights,
                    self.block_rows,
                )
                loss = (loss + back) / 2
            losses.append(loss)
            hits.append(hit)
        return torch.stack(losses).mean(0), hits[0]

    def _diversity(self, both: Tensor, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The diversity term of ``both`` sides [2, B, K, D], its metrics, and the sums that measure q's quality."""
        if self.diversity == "orthogonality":
            penalty = _average(orthogonality_penalty(both.flatten(0, 1)).view(2, -1).mean(0), pairs)
            return penalty, {"orthogonality": penalty}, {}
        estimate = self.variational.estimate(self._sides(*both), pairs.valid)
        per_side = estimate.per_side.to(both.dtype)
        parts = {"mutual_information": per_side.mean()} | {
            f"mutual_information_{side}": value for side, value in zip(self.sides, per_side, strict=True)
        }
        return per_side.mean(), parts, {name: value.to(both.dtype) for name, value in estimate.sums.items()}

    def _sides(self, query: Tensor, target: Tensor) -> Tensor:
        """The sides [S, B, K, D] that the mutual-information term is about."""
        return torch.stack([{"query": query, "target": target}[side] for side in self.sides])


def _local(embeddings: PairEmbeddings, identities: PairIdentities, dtype: torch.dtype) -> PairEmbeddings:
    """Zero if they count nowhere, and the negatives in rows, [B * M, ...]."""
    own = embeddings.map(lambda tensor: tensor.to(dtype))
    query, target = (_keep(side, identities.valid) for side in (own.query, own.target))
    return PairEmbeddings(query, target, _keep(own.negatives, identities.negative_valid).flatten(0, 1))


def _keep(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Zero if not valid: a filler's values, NaN included, then reach neither a product nor a gradient."""
    return embeddings.masked_fill(~valid.reshape(*valid.shape, *(1 for _ in embeddings.shape[valid.dim() :])), 0)


def _lead(embeddings: Tensor, size: int | None) -> Tensor:
    return embeddings if size is None else functional.normalize(embeddings[..., :size], dim=-1)


def _average(values: Tensor, pairs: Pairs) -> Tensor:
    """W / (valid pairs of all ranks) times the sum of ``values`` [B, ...] over this rank's valid rows: its mean over
    ranks is the mean over all valid rows."""
    return pairs.weight * _keep(values, pairs.valid).sum(0)


def _require_valid(count: int) -> int:
    if count == 0:
        raise UserError(
            "Not one pair of this step is valid on any rank, so there is nothing to learn from: every sample was "
            "unusable or a filler; check the shards in data.train, or make the batch larger."
        )
    return count


def _reduce(metrics: dict[str, Tensor], pooled: dict[str, Tensor], cosines: Tensor) -> dict[str, Tensor]:
    """Means of ``metrics`` over ranks, q's quality from the sums ``pooled``, and mean and maximum of the ``cosines``
    [K(K-1)/2], in one all-reduce."""
    _, world_size = rank_and_world_size()
    everything = all_reduce_sum(torch.cat([torch.stack([*metrics.values(), *pooled.values()]).detach(), cosines]))
    everything, cosines = everything.tensor_split([len(metrics) + len(pooled)])
    reduced = dict(zip(metrics, everything / world_size, strict=False))
    if pooled:
        residual, variation, gap, rows = everything[len(metrics) :]
        # Without two valid rows on any rank nothing varies, so q has explained nothing.
        reduced["mi_r2"] = torch.where(variation > 0, 1 - residual / variation, 0)
        reduced["mi_log_likelihood_gap"] = gap / rows
    if len(cosines):
        reduced |= {"path_cosine": cosines.mean() / world_size, "path_cosine_max": cosines.max() / world_size}
    return reduced
