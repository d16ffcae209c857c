"""The reference for updates: plain PyTorch on one process, and how the real trainer's parameters are taken out of its
ranks."""

import torch

from pdfx.config import Config
from pdfx.data import Batch, TrainLoader
from pdfx.embedder.build import build_embedder
from pdfx.objective import Objective, PairEmbeddings, PairIdentities
from pdfx.train.engine import TrainingModule, make_optimizer, parameter_groups
from pdfx.train.schedule import derived_seed, learning_rate_factor
from pdfx.train.step import chunk_tokens_per_path, group_paths, split_slots

Parameters = dict[str, torch.Tensor]


def engine_parameters(config: Config) -> tuple[Parameters, list[dict[str, float]]]:
    """In a rank: train with the real trainer; its parameters, gathered, and each step's metrics."""
    import deepspeed

    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    metrics = [trainer.train_step() for _ in range(config.train.max_steps)]
    parameters = {}
    for name, parameter in trainer.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            parameters[name] = parameter.detach().float().clone()
    trainer.close()
    trainer.engine.destroy()
    return parameters, metrics


class PlainPyTorch:
    """No engine, no sharding, no gradient tricks: one graph for the whole batch of all ranks, one backward pass.

    Args:
        config: of one rank of the run that is compared; its batch is a W-th of the whole.
        ranks: W.
        replay: embed the same passes as the ranks do, with the random numbers of each; otherwise everything in one
            pass.

    Attributes:
        batches: of each step so far; with ``replay`` one per rank.
    """

    def __init__(self, config: Config, ranks: int, replay: bool = False):
        self.config, self.ranks, self.replay = config, ranks, replay
        train, settings = config.train, config.objective
        torch.manual_seed(derived_seed(train.seed, "adapters"))
        embedder = build_embedder(config)
        self.module = TrainingModule(embedder, settings.temperature, settings.learn_temperature)
        self.start = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}
        self.optimizer = make_optimizer(parameter_groups(self.module, config), {"zero_optimization": {}}, train)
        self.pairs = train.per_device_train_batch_size * train.gradient_accumulation_steps
        loader = (config.data, embedder.processor)
        if replay:
            shape = (train.per_device_train_batch_size, train.gradient_accumulation_steps)
            tokens = chunk_tokens_per_path(train, config.model.paths)
            self.loaders = [
                TrainLoader(*loader, rank, ranks, *shape, train.seed, None, tokens) for rank in range(ranks)
            ]
        else:
            self.loaders = [TrainLoader(*loader, 0, 1, ranks * self.pairs, 1, train.seed)]
        self.batches: list[list[Batch]] = []
        sizes = (config.model.paths, embedder.config.hidden_size, train.seed, [])
        self.objective = Objective(settings.model_copy(update={"diversity": "none"}), *sizes)
        self.information = Objective(settings, *sizes)

    def train(self) -> tuple[Parameters, list[dict[str, float]]]:
        metrics = [self.step(step) for step in range(1, self.config.train.max_steps + 1)]
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}, metrics

    def step(self, step: int) -> dict[str, float]:
        batches = [next(loader) for loader in self.loaders]
        self.batches.append(batches)
        embeddings, log_temperature = self.embed(batches, step)
        parts = [split_slots(own, batch.pairs, batch.negatives) for own, batch in zip(embeddings, batches, strict=True)]
        kinds = ("query", "target", "negatives")
        paths = PairEmbeddings(*(torch.cat([getattr(part, kind) for part in parts]) for kind in kinds))
        every = torch.arange(self.config.model.paths)
        fused = paths.map(
            lambda part: self.module.embedder.fusion(part.flatten(0, -3), every)[0].unflatten(0, part.shape[:-2])
        )
        names = ("target_ids", "negative_ids", "valid", "negative_valid")
        identities = PairIdentities(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))
        loss, _ = self.objective(paths, fused, identities, log_temperature, step - 1)
        loss = loss + self.mean_of_rank_terms(torch.stack([paths.query, paths.target]), identities.valid, step - 1)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.module.parameters():
            # The tower's layers behind the one that LLaVA-NeXT reads get no gradient. ZeRO takes that for a zero and
            # decays them; torch alone would skip them.
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.train.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(step, self.config.train, self.config.train.max_steps)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    def embed(self, batches: list[Batch], step: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each rank's embeddings ``[(2 + M) B, K, D]`` in the order of slots, and the temperature's logarithm, all with
        their graph."""
        groups = group_paths(self.config.model.paths, self.config.train.chunk_paths) if self.replay else [None]
        results: list[list[tuple]] = [[] for _ in batches]
        for place in range(max(len(batch.chunks) for batch in batches)):
            chunks = {rank: batch.chunks[place] for rank, batch in enumerate(batches) if place < len(batch.chunks)}
            images = any("pixel_values" in chunk.inputs for chunk in chunks.values())
            # A rank without an image embeds a stand-in beside its texts, and dropout then draws for it too.
            self.module.embedder.vision_agreement = lambda own, images=images: images
            for (number, paths), (rank, chunk) in (
                (group, item) for group in enumerate(groups) for item in chunks.items()
            ):
                if self.replay:
                    torch.manual_seed(
                        derived_seed(self.config.train.seed, "dropout", step, rank, place * len(groups) + number)
                    )
                output, log_temperature, _ = self.module(chunk.inputs, paths)
                results[rank].append((number, chunk.slots, output))
        return [self.join(parts, len(groups)) for parts in results], log_temperature

    @staticmethod
    def join(parts: list[tuple[int, torch.Tensor, torch.Tensor]], groups: int) -> torch.Tensor:
        columns = []
        for group in range(groups):
            own = [(slots, output) for number, slots, output in parts if number == group]
            order = torch.argsort(torch.cat([slots for slots, _ in own]))
            columns.append(torch.cat([output for _, output in own])[order])
        return torch.cat(columns, dim=1)

    def mean_of_rank_terms(self, both: torch.Tensor, valid: torch.Tensor, step: int) -> torch.Tensor:
        """What the ranks' diversity terms must come to: each about that rank's pairs, or all about all pairs, with the
        pairs of all ranks remembered."""
        diversity = self.information.diversity
        ranks = 1 if self.config.objective.diversity_scope == "global" else self.ranks
        parts = zip(both.chunk(ranks, dim=1), valid.chunk(ranks), strict=True)
        measured = [diversity(*part, step) for part in parts]
        diversity.summarise({name: sum(one.sums[name] for one in measured) for name in measured[0].sums})
        diversity.learn(both.detach(), valid)
        losses = [one.loss for one in measured if one.loss is not None]
        return torch.stack(losses).mean() if losses else torch.zeros(())
