"""What do huge batches cost in the objective? Memory at 65,536 pairs, and time against a dense cross-entropy at
8,192."""

from __future__ import annotations

import json

import torch
from common import answer, at_most, held_bytes, in_fresh_process, in_turns, medians, paired_ratio, peak_bytes, start
from torch.nn.functional import cross_entropy, normalize

from pdfx.config import ObjectiveSection
from pdfx.objective import Objective, PairEmbeddings, PairIdentities

DIMENSION = 256
LOG_TEMPERATURE = torch.tensor(0.02).log()
SECTION = ObjectiveSection(diversity="none")


def embeddings(pairs: int) -> list[torch.Tensor]:
    """Queries, and targets that resemble them, so that the loss is neither 0 nor that of chance; a path's and the fused
    ones."""
    torch.manual_seed(0)
    query = normalize(torch.randn(2, pairs, DIMENSION), dim=-1)
    target = normalize(query + 0.15 * torch.randn(2, pairs, DIMENSION), dim=-1)
    return [tensor.clone().requires_grad_() for tensor in (*query, *target)]


def tiled(inputs: list[torch.Tensor]) -> torch.Tensor:
    """The product: both InfoNCE terms of one path, forward and backward."""
    query, query_fused, target, target_fused = inputs
    pairs = len(query)
    objective = Objective(SECTION, 1, DIMENSION, seed=0, matryoshka_dims=[])
    identities = PairIdentities(
        torch.arange(pairs),
        torch.empty(pairs, 0, dtype=torch.long),
        torch.ones(pairs, dtype=torch.bool),
        torch.empty(pairs, 0, dtype=torch.bool),
    )
    none = query.new_empty(pairs, 0, DIMENSION)
    paths = PairEmbeddings(query[:, None], target[:, None], none[:, :, None])
    fused = PairEmbeddings(query_fused, target_fused, none)
    loss, _ = objective(paths, fused, identities, LOG_TEMPERATURE, 0)
    loss.backward()
    return loss.detach()


def dense(inputs: list[torch.Tensor]) -> torch.Tensor:
    """The same two terms as anyone would write them."""
    query, query_fused, target, target_fused = inputs
    own, temperature = torch.arange(len(query)), LOG_TEMPERATURE.exp()
    loss = cross_entropy(query @ target.T / temperature, own) + cross_entropy(
        query_fused @ target_fused.T / temperature, own
    )
    loss.backward()
    return loss.detach()


def measure_memory(pairs: int) -> dict:
    """Growth of the peak over what the process holds with its inputs; a small call before has loaded all code."""
    tiled(embeddings(256))
    inputs = embeddings(pairs)
    before = held_bytes()
    loss = tiled(inputs)
    return {
        "gib": (peak_bytes() - before) / 2**30,
        "inputs_gib": sum(tensor.nbytes for tensor in inputs) / 2**30,
        "loss": float(loss),
    }


def agreement(pairs: int) -> dict[str, float]:
    """The largest differences from the dense computation in float32, and how far both are from float64 (gradients
    relative to their length)."""
    ours, theirs = embeddings(pairs), embeddings(pairs)
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    our_value, their_value, exact_value = (float(loss) for loss in (tiled(ours), dense(theirs), dense(exact)))
    a, b, c = (torch.cat([tensor.grad for tensor in inputs]).double() for inputs in (ours, theirs, exact))
    return {
        "value": exact_value,
        "value_from_dense": abs(our_value - their_value),
        "pdfx_value_from_float64": abs(our_value - exact_value),
        "dense_value_from_float64": abs(their_value - exact_value),
        "gradients": float((a - b).abs().max()),
        "pdfx_from_float64": float((a - c).norm() / c.norm()),
        "dense_from_float64": float((b - c).norm() / c.norm()),
    }


def main() -> None:
    options = start(__doc__)
    large, small = (4096, 1024) if options.tiny else (65536, 8192)
    if options.part == "memory":
        print(json.dumps(measure_memory(large)))
        return
    memory = in_fresh_process("memory", options)
    difference = agreement(small)
    ours, theirs = embeddings(small), embeddings(small)

    def run(side, inputs):
        for tensor in inputs:
            tensor.grad = None
        side(inputs)

    seconds = in_turns({"pdfx": lambda: run(tiled, ours), "dense": lambda: run(dense, theirs)}, options.pairs)
    targets = [
        at_most(f"GiB over the inputs at {large} pairs", memory["gib"], 1.0),
        at_most(f"time over a dense cross-entropy's at {small} pairs", paired_ratio(seconds, "pdfx", "dense"), 1.2),
        # Scores are up to 50, where float32 has steps of 3.8e-6: the dense side's own value is no reference at 1e-6,
        # that of its float64 run is.
        at_most("difference of the value from the dense one's in float64", difference["pdfx_value_from_float64"], 1e-6),
        at_most("largest difference of a gradient", difference["gradients"], 1e-6),
    ]
    answer(options, __doc__, targets, {**medians(seconds), **memory, **difference})


if __name__ == "__main__":
    main()
