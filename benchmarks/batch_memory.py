"""Does a larger global batch need more memory, and what does chunking cost in time?"""

from __future__ import annotations

import json

from common import answer, at_most, held_bytes, in_fresh_process, in_turns, medians, paired_ratio, peak_bytes, start
from workload import Workload, batch_of, pairs, shape_of

SMALL, LARGE = 128, 4096
CHUNK_PAIRS = 32


def measure_memory(count: int, options) -> dict:
    """The process's peak over two steps in chunks, without what the batch's own inputs take in host memory; and growth
    over the finished model."""
    workload = Workload("tiny" if options.tiny else "small", 2, True)
    embedder = workload.embedder()
    batch = batch_of(pairs(count, largest_side=96, most_words=24), embedder, chunk_pairs=CHUNK_PAIRS)
    inputs = sum(tensor.nbytes for chunk in batch.chunks for tensor in chunk.inputs.values())
    stepper = workload.stepper(embedder)
    before = held_bytes()
    for step in range(1, 3):
        stepper(batch, step)
    return {"peak": peak_bytes() - inputs, "growth": peak_bytes() - before, "inputs": inputs}


def main() -> None:
    options = start(__doc__)
    if options.part:
        print(json.dumps(measure_memory(int(options.part), options)))
        return
    small, large = (in_fresh_process(str(count), options) for count in (SMALL, LARGE))
    # Gradients of this size are reduced once per step if the choice is left to the program.
    workload = Workload("tiny" if options.tiny else "quarter", 4, True, gradient_reduction="step")
    embedder = workload.embedder()
    samples = pairs(16)
    stepper, steps = workload.stepper(embedder), iter(range(1, 10**6))
    whole, chunked = batch_of(samples, embedder), batch_of(samples, embedder, chunk_pairs=4)
    seconds = in_turns(
        {"chunked": lambda: stepper(chunked, next(steps)), "whole": lambda: stepper(whole, next(steps))}, options.pairs
    )
    targets = [
        at_most(f"peak memory at {LARGE} pairs over that at {SMALL}", large["peak"] / small["peak"], 1.15),
        at_most("time per sample in 4 chunks over that in one", paired_ratio(seconds, "chunked", "whole"), 1.4),
    ]
    memory = {
        f"{name}_{count}_gib": round(found[name] / 2**30, 3)
        for count, found in ((SMALL, small), (LARGE, large))
        for name in found
    }
    answer(options, __doc__, targets, {**medians(seconds), **memory, **shape_of(whole)})


if __name__ == "__main__":
    main()
