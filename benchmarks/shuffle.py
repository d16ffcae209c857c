"""How well does the canonical order mix, against a full permutation and against what shards with a shuffle buffer
give?"""

from __future__ import annotations

import random

import numpy as np
from common import answer, at_least, at_most, start

from pdfx.config import DataSection
from pdfx.data import CanonicalOrder

SHARDS, PER_SHARD, BATCH, BUFFER = 200, 5000, 128, 1000


def canonical(shards: int, per_shard: int) -> np.ndarray:
    """The product's first epoch with its default span and window."""
    defaults = DataSection(train="unused")
    order = CanonicalOrder([per_shard] * shards, 0, defaults.span_samples, defaults.window_spans)
    return np.array([order.sample(position) for position in range(shards * per_shard)])


def shuffle_buffer(shards: int, per_shard: int) -> np.ndarray:
    """Shards in a random order, read by one worker through a buffer from which samples are drawn."""
    draw = random.Random(0)
    names = list(range(shards))
    draw.shuffle(names)
    buffer, result = [], []
    for shard in names:
        for sample in range(shard * per_shard, (shard + 1) * per_shard):
            buffer.append(sample)
            if len(buffer) > BUFFER:
                place = draw.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                result.append(buffer.pop())
    draw.shuffle(buffer)
    return np.array(result + buffer)


def quality(order: np.ndarray, per_shard: int, span: int) -> dict[str, float]:
    """Rank correlation of source and epoch; shards in a batch; and how many of a batch have another of their own
    stretch of ``span`` samples in it."""
    positions = np.arange(len(order))
    batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    shards = np.mean([len(np.unique(batch // per_shard)) for batch in batches])
    near = np.mean([1 - np.sum(np.unique(batch // span, return_counts=True)[1] == 1) / BATCH for batch in batches])
    # Both are permutations of 0 ... n - 1, so the correlation of ranks is that of the numbers.
    return {
        "correlation": float(np.corrcoef(positions, order)[0, 1]),
        "shards_per_batch": float(shards),
        "near_neighbours": float(near),
    }


def main() -> None:
    options = start(__doc__)
    shards, per_shard = (20, 500) if options.tiny else (SHARDS, PER_SHARD)
    span = DataSection(train="unused").span_samples
    full = np.random.default_rng(0).permutation(shards * per_shard)
    orders = {
        "pdfx": canonical(shards, per_shard),
        "shuffle_buffer": shuffle_buffer(shards, per_shard),
        "permutation": full,
    }
    found = {name: quality(order, per_shard, span) for name, order in orders.items()}
    # Spans are permuted whole, so the deviation of the correlation is that of as many draws as there are spans.
    deviation = 1 / np.sqrt(shards * per_shard / span)
    targets = [
        at_most(
            "correlation of a sample's places in source and epoch, in deviations of permuted spans",
            abs(found["pdfx"]["correlation"]) / deviation,
            4,
        ),
        at_least(
            f"shards in a batch of {BATCH} over those of a full permutation",
            found["pdfx"]["shards_per_batch"] / found["permutation"]["shards_per_batch"],
            0.75,
        ),
        at_least(
            "shards in a batch over those of a shuffle buffer",
            found["pdfx"]["shards_per_batch"] / found["shuffle_buffer"]["shards_per_batch"],
            1,
        ),
    ]
    answer(
        options,
        __doc__,
        targets,
        {**found, "samples": shards * per_shard, "shards": shards, "span": span, "deviation": float(deviation)},
    )


if __name__ == "__main__":
    main()
