"""What do K=4 paths cost in training, against K padded passes of plain transformers and against the least that the
arithmetic allows?"""

from __future__ import annotations

import torch
from common import answer, at_least, at_most, in_turns, medians, paired_ratio, start
from torch.nn.functional import cross_entropy, normalize
from workload import Workload, batch_of, pairs, shape_of

PATHS = 4


class PaddedPasses:
    """What a user would do otherwise: K times the whole model of plain transformers on the padded batch, one update at
    the end."""

    def __init__(self, workload: Workload, inputs: dict[str, torch.Tensor]):
        self.model, self.inputs = workload.plain(), inputs
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        self.last = inputs["attention_mask"].sum(1) - 1

    def __call__(self) -> None:
        for _ in range(PATHS):
            states = self.model(**self.inputs, use_cache=False).last_hidden_state
            contrast(states[torch.arange(len(states)), self.last]).backward()
        update(self.model, self.optimizer)


class Floor:
    """The least work: vision once, and plain decoder passes over K times the real tokens, without prefixes, padding, or
    anything that ours does beside.

    The N real tokens are cut into rows of equal length, so that plain causal attention needs no mask. ``at_once``: all
    K repetitions in one batch; otherwise one after another, which keeps activations nearer to the cores.
    """

    def __init__(self, workload: Workload, inputs: dict[str, torch.Tensor], at_once: bool):
        self.model, self.inputs, self.at_once = workload.plain(), inputs, at_once
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        keep = inputs["attention_mask"].bool()
        self.length = int(keep.sum()) // len(keep)
        self.tokens = inputs["input_ids"][keep][: self.length * len(keep)]

    def __call__(self) -> None:
        model, inputs = self.model, self.inputs
        states = model.get_input_embeddings()(self.tokens)
        images = model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        places = self.tokens == model.config.image_token_id
        rows = states.masked_scatter(places[:, None], images[: int(places.sum())]).view(
            -1, self.length, states.shape[-1]
        )
        if self.at_once:
            last = model.language_model(inputs_embeds=rows.repeat(PATHS, 1, 1), use_cache=False).last_hidden_state[
                :, -1
            ]
            sum(contrast(part) for part in last.split(len(rows))).backward()
        else:
            leaf = rows.detach().requires_grad_()
            for _ in range(PATHS):
                contrast(model.language_model(inputs_embeds=leaf, use_cache=False).last_hidden_state[:, -1]).backward()
            rows.backward(leaf.grad)
        update(self.model, self.optimizer)


def contrast(states: torch.Tensor) -> torch.Tensor:
    """InfoNCE of the first half of the rows against the second."""
    query, target = normalize(states, dim=-1).chunk(2)
    return cross_entropy(query @ target.T / 0.02, torch.arange(len(query)))


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure(train_vision: bool, options) -> tuple[list[dict], dict]:
    workload = Workload("tiny" if options.tiny else "quarter", PATHS, train_vision)
    embedder = workload.embedder()
    batch = batch_of(pairs(4 if options.tiny else 8), embedder)
    stepper, inputs = workload.stepper(embedder), batch.chunks[0].inputs
    steps = iter(range(1, 10**6))
    sides = {
        "pdfx": lambda: stepper(batch, next(steps)),
        "padded": PaddedPasses(workload, inputs),
        "floor_at_once": Floor(workload, inputs, at_once=True),
        "floor_in_turn": Floor(workload, inputs, at_once=False),
    }
    seconds = in_turns(sides, options.pairs)
    over_floor = max(paired_ratio(seconds, "pdfx", floor) for floor in ("floor_at_once", "floor_in_turn"))
    vision = "vision trained" if train_vision else "vision frozen"
    targets = [
        at_least(
            f"{vision}: K=4 step, times faster than {PATHS} padded passes", paired_ratio(seconds, "padded", "pdfx"), 2.2
        ),
        at_most(f"{vision}: K=4 step, time over the faster floor", over_floor, 1.15),
    ]
    return targets, {**medians(seconds), **shape_of(batch)}


def main() -> None:
    options = start(__doc__)
    targets, details = [], {}
    for train_vision in (True, False):
        found, seconds = measure(train_vision, options)
        targets += found
        details["vision trained" if train_vision else "vision frozen"] = seconds
    answer(options, __doc__, targets, details)


if __name__ == "__main__":
    main()
