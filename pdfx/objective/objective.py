"""The training loss of one step, on embeddings.

    loss = path_weight * sum_k InfoNCE_k + fused_weight * InfoNCE_fused + maxsim_weight * InfoNCE_maxsim
         + distillation_weight * distillation + weight * diversity

The loss of rank r is L_r with mean over ranks = the global loss and sum over ranks s of dL_s / dE_r = W * d(global
loss) / dE_r: what an engine that averages gradients over ranks turns into the update of one process with the whole
batch. The diversity term is the exception unless ``objective.diversity_scope`` is global: it is about each rank's own
pairs, and the global loss holds the mean of these W terms.

Legend: B pairs on this rank, K paths, M hard negatives per pair, D dimension of a path, F of the fused embedding, W
world size, C candidates.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective.contrastive import Exclusion, info_nce
from pdfx.objective.diversity.term import Diversity
from pdfx.objective.gather import all_gather, all_reduce_sum, rank_and_world_size
from pdfx.objective.pairs import PairEmbeddings, PairIdentities, Terms, keep_valid
from pdfx.objective.paths_together import distillation, maxsim_info_nce
from pdfx.objective.pools import Pairs, Pool, gather_pools, mean_over_views


class Objective:
    """Contrast over all ranks, per path and fused, and a term that keeps the paths apart.

    Args:
        settings: weights, temperature options and the diversity term.
        paths: K. With one path there is nothing to keep apart, and no diversity term.
        dimension: D.
        seed: of what the diversity term draws.
        matryoshka_dims: leading dimensions that are contrasted as embeddings of their own, re-normalised; each InfoNCE
            is then the mean over these and the full embedding. They cut the fused embedding likewise.

    Raises:
        UserError: a Matryoshka dimension is not a leading part of D; MaxSim is wanted with one path, or with more paths
            than there are.
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
        _check_maxsim(settings, paths)
        self.settings = settings
        self.paths = paths
        self.maxsim_budgets = sorted(set(settings.maxsim_budgets)) or [paths]
        self.matryoshka_dims = sorted(set(matryoshka_dims) - {dimension})
        self.diversity = Diversity(settings, paths, dimension, seed) if paths > 1 else None

    def to(self, device: torch.device | str) -> "Objective":
        """Move what is kept of earlier steps."""
        if self.diversity is not None:
            self.diversity.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """What is kept of earlier steps, the same on every rank; empty with one path."""
        return {} if self.diversity is None else self.diversity.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave. Raises UserError if it came from other objective settings, paths or
        dimension."""
        if self.diversity is not None:
            self.diversity.load_state_dict(state)

    def reset_networks(self) -> None:
        """Start with other variational networks. Raises ValueError if the settings use none."""
        if self.diversity is None or self.diversity.networks is None:
            raise ValueError("this objective has no variational networks")
        self.diversity.reset_networks()

    def kept_tensors(self) -> list[Tensor]:
        """What is kept of earlier steps, to be compared over ranks."""
        return [] if self.diversity is None else self.diversity.kept_tensors()

    def learn(self, query: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Let the diversity term learn from a step whose loss is finite. A collective.

        Call it after the loss of these embeddings, so that nothing is judged on what it was fitted to.

        Args:
            query: [B, K, D], as ``target``.
            valid: bool [B].

        Returns:
            Metrics of the fit, alike on every rank.
        """
        if self.diversity is None:
            return {}
        with torch.autocast(query.device.type, enabled=False):
            dtype = torch.promote_types(query.dtype, torch.float32)
            both = torch.stack([keep_valid(side.detach().to(dtype), valid) for side in (query, target)])
            return self.diversity.learn(both, valid)

    def __call__(
        self,
        paths: PairEmbeddings,
        fused: PairEmbeddings,
        identities: PairIdentities,
        log_temperature: Tensor,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank and metrics of all ranks; see ``terms``."""
        terms, metrics = self.terms(paths, fused, identities, log_temperature, step)
        return terms.loss, metrics

    def terms(
        self,
        paths: PairEmbeddings,
        fused: PairEmbeddings,
        identities: PairIdentities,
        log_temperature: Tensor,
        step: int,
    ) -> tuple[Terms, dict[str, Tensor]]:
        """The parts of this rank's loss, and metrics of all ranks. A collective: every rank calls it with the same B
        and M.

        Args:
            paths: embeddings per path.
            fused: embeddings fused of all paths.
            identities: what is not a negative of which query, and what counts nowhere.
            log_temperature: scalar; a rank's gradient of it is that of its own loss, so the mean over ranks is that of
                the global loss.
            step: optimiser step, which decides what the diversity term draws.

        Returns:
            Scalars (float32, or float64 if the embeddings are), differentiable in every embedding and
            ``log_temperature``, and detached scalars that are alike on every rank: ``loss`` and its parts
            ``loss_path_k``, ``loss_fused``, ``loss_maxsim`` and ``loss_distillation`` if they have a weight,
            ``diversity`` (per dimension, without ``diversity_weight``);
            ``mutual_information`` (nats per dimension, vCLUB on rows that q was not fitted to, and per side) with
            ``mutual_information_error`` and q's ``mi_r2`` on these rows; ``path_cosine`` and ``path_cosine_max``,
            ``path_cka``, ``path_r2`` (see ``Diversity.summarise``); ``accuracy``, how often the fused target beats all
            the query's negatives strictly; ``temperature``.

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
            contrast = torch.stack(terms).sum()
            diversity, sums = None, {}
            if self.diversity is not None:
                measured = self.diversity(torch.stack([paths.query, paths.target]), pairs.valid, step, pairs.weight)
                diversity, sums = measured.loss, measured.sums
                metrics |= measured.metrics
            found = Terms(contrast, diversity)
            metrics = {"loss": found.loss, **metrics, "temperature": log_temperature.exp().to(dtype)}
            metrics, sums = _reduce(metrics, sums)
            if self.diversity is not None:
                metrics |= self.diversity.summarise(sums)
        return found, metrics

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
        settings = self.settings
        pools = gather_pools(paths, fused, settings.symmetric)
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for pool, weight in zip(pools, (settings.path_weight, settings.fused_weight), strict=True):
            # A kind of weight 0 is only looked at.
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                losses, hits = self._info_nce(pool, pairs, log_temperature)
            if pool is pools[0]:
                metrics |= {f"loss_path_{k}": value for k, value in enumerate(losses)}
            else:
                metrics |= {"loss_fused": losses[0], "accuracy": _average(hits[:, 0].to(losses.dtype), pairs)}
            if weight > 0:
                terms.append(weight * losses.sum())
        if settings.maxsim_weight > 0:
            metrics["loss_maxsim"] = self._maxsim(pools[0], pairs, log_temperature)
            terms.append(settings.maxsim_weight * metrics["loss_maxsim"])
        if settings.distillation_weight > 0 and self.paths > 1:
            metrics["loss_distillation"] = self._distillation(*pools, pairs, log_temperature)
            terms.append(settings.distillation_weight * metrics["loss_distillation"])
        return terms, metrics

    def _info_nce(self, pool: Pool, pairs: Pairs, log_temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [K] averaged as by ``_average`` and over directions and leading dimensions, and hits [B, K] of the
        full embeddings from queries to targets."""
        hits = []

        def loss(exclusion: Exclusion, rows: Tensor, candidates: Tensor) -> Tensor:
            sums, hit = info_nce(rows, candidates, log_temperature, exclusion, pairs.weights, self.block_rows)
            hits.append(hit)
            return sums

        return mean_over_views(loss, pairs, self.matryoshka_dims, pool), hits[0]

    def _maxsim(self, pool: Pool, pairs: Pairs, log_temperature: Tensor) -> Tensor:
        """The mean over budgets, averaged as in ``_info_nce``."""

        def loss(exclusion: Exclusion, rows: Tensor, candidates: Tensor) -> Tensor:
            shared = log_temperature, exclusion, pairs.weights, self.block_rows
            each = [maxsim_info_nce(rows[:, :k], candidates[:, :k], *shared) for k in self.maxsim_budgets]
            return torch.stack(each).mean()

        return mean_over_views(loss, pairs, self.matryoshka_dims, pool)

    def _distillation(self, paths: Pool, fused: Pool, pairs: Pairs, log_temperature: Tensor) -> Tensor:
        def loss(exclusion: Exclusion, rows: Tensor, candidates: Tensor, teacher: Tensor, others: Tensor) -> Tensor:
            shared = log_temperature, exclusion, pairs.weights, self.block_rows
            return distillation(rows, candidates, teacher, others, *shared)

        return mean_over_views(loss, pairs, self.matryoshka_dims, paths, fused)


def _check_maxsim(settings: ObjectiveSection, paths: int) -> None:
    if settings.maxsim_weight > 0 and paths == 1:
        raise UserError(
            "objective.maxsim_weight is above 0, but MaxSim of a single path is that path's InfoNCE; set "
            "objective.maxsim_weight to 0 and use objective.path_weight, or set model.paths to 2 or more."
        )
    if settings.maxsim_weight > 0 and max(settings.maxsim_budgets, default=0) > paths:
        raise UserError(
            f"objective.maxsim_budgets holds {max(settings.maxsim_budgets)}, but model.paths is {paths}; choose values "
            f"from 1 to {paths}."
        )


def _local(embeddings: PairEmbeddings, identities: PairIdentities, dtype: torch.dtype) -> PairEmbeddings:
    """Zero if they count nowhere, and the negatives in rows, [B * M, ...]."""
    own = embeddings.map(lambda tensor: tensor.to(dtype))
    query, target = (keep_valid(side, identities.valid) for side in (own.query, own.target))
    return PairEmbeddings(query, target, keep_valid(own.negatives, identities.negative_valid).flatten(0, 1))


def _average(values: Tensor, pairs: Pairs) -> Tensor:
    """W / (valid pairs of all ranks) times the sum of ``values`` [B, ...] over this rank's valid rows: its mean over
    ranks is the mean over all valid rows."""
    return pairs.weight * keep_valid(values, pairs.valid).sum(0)


def _require_valid(count: int) -> int:
    if count == 0:
        raise UserError(
            "Not one pair of this step is valid on any rank, so there is nothing to learn from: every sample was "
            "unusable or a filler; check the shards in data.train, or make the batch larger."
        )
    return count


def _reduce(metrics: dict[str, Tensor], sums: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means of ``metrics`` and totals of ``sums`` over ranks, in one all-reduce."""
    _, world_size = rank_and_world_size()
    totals = all_reduce_sum(torch.stack([*metrics.values(), *sums.values()]).detach())
    means, totals = totals.tensor_split([len(metrics)])
    return dict(zip(metrics, means / world_size, strict=True)), dict(zip(sums, totals, strict=True))
