"""With one path, how does chunked training compare with sentence-transformers' CachedMultipleNegativesRankingLoss on
the same model, data, batch and chunk?"""

from __future__ import annotations

import json

import torch
from common import (
    answer,
    at_least,
    at_most,
    held_bytes,
    in_fresh_process,
    in_turns,
    medians,
    paired_ratio,
    peak_bytes,
    start,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import nn
from torch.nn.functional import normalize
from workload import Workload, batch_of, pairs, shape_of

PAIRS, CHUNK_ITEMS = 16, 8
NEVER = 1e-30
"""A learning rate too small to change any weight, so that both sides keep computing the same loss."""


class LastToken(nn.Module):
    """The backbone as sentence-transformers wants a model: features in, one unit embedding per sample out."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {name: value for name, value in features.items() if name != "num_images_per_sample"}
        states = self.backbone(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return {**features, "sentence_embedding": normalize(states[torch.arange(len(states)), last], dim=-1)}


class Ours:
    def __init__(self, workload: Workload, samples: list):
        embedder = workload.embedder()
        self.batch = batch_of(samples, embedder, chunk_pairs=CHUNK_ITEMS // 2)
        self.stepper = workload.stepper(embedder)
        self.step = 0

    def __call__(self) -> float:
        self.step += 1
        return self.stepper(self.batch, self.step)["loss_path_0"]


class Theirs:
    def __init__(self, workload: Workload, samples: list):
        processor = workload.embedder().processor
        self.model = SentenceTransformer(modules=[LastToken(workload.plain())], device="cpu").train()
        scale = 1 / workload.config.objective.temperature
        self.loss = CachedMultipleNegativesRankingLoss(self.model, scale=scale, mini_batch_size=CHUNK_ITEMS)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=NEVER)
        self.columns = []
        for number, side in enumerate(("query", "target")):
            items = [sample[number] for sample in samples]
            inputs, _ = processor(items, [side] * len(items))
            self.columns.append(
                {**inputs, "num_images_per_sample": torch.tensor([len(item["images"]) for item in items])}
            )

    def __call__(self) -> float:
        loss = self.loss([dict(column) for column in self.columns], None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def workload_of(options) -> Workload:
    return Workload("tiny" if options.tiny else "quarter", 1, True, learning_rate=NEVER, prefix={"length": 0})


def peak_of(side: type, options) -> dict:
    """The most memory that two steps held over what the process held before it had a model: weights, gradients,
    optimiser and activations."""
    workload, samples = workload_of(options), pairs(PAIRS)
    before = held_bytes()
    step = side(workload, samples)
    step()
    step()
    return {"bytes": peak_bytes() - before}


def main() -> None:
    options = start(__doc__)
    sides = {"pdfx": Ours, "sentence_transformers": Theirs}
    if options.part:
        print(json.dumps(peak_of(sides[options.part], options)))
        return
    peaks = {name: in_fresh_process(name, options)["bytes"] for name in sides}
    workload, samples = workload_of(options), pairs(PAIRS)
    ours, theirs = Ours(workload, samples), Theirs(workload, samples)
    losses = {"pdfx_loss": ours(), "sentence_transformers_loss": theirs()}
    seconds = in_turns({"pdfx": ours, "sentence_transformers": theirs}, options.pairs)
    targets = [
        at_least(
            "samples per second over sentence-transformers'",
            paired_ratio(seconds, "sentence_transformers", "pdfx"),
            1.3,
        ),
        at_most("peak memory over sentence-transformers'", peaks["pdfx"] / peaks["sentence_transformers"], 1.0),
        at_most("difference of the losses", abs(losses["pdfx_loss"] - losses["sentence_transformers_loss"]), 1e-4),
    ]
    memory = {f"{name}_peak_gib": round(value / 2**30, 3) for name, value in peaks.items()}
    answer(options, __doc__, targets, {**medians(seconds), **memory, **losses, **shape_of(ours.batch)})


if __name__ == "__main__":
    main()
