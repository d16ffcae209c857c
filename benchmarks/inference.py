"""What does embedding cost after training: one path against the plain backbone's forward pass, all K paths against
vision once and K decoder passes?"""

from __future__ import annotations

import tempfile

import torch
from common import answer, at_most, in_turns, medians, paired_ratio, start
from workload import Workload, batch_of, pairs, shape_of

from pdfx.model import ParallelEmbedder

PATHS = 4


def main() -> None:
    options = start(__doc__)
    workload = Workload("tiny" if options.tiny else "quarter", PATHS, True)
    with tempfile.TemporaryDirectory() as folder:
        embedder = workload.embedder()
        embedder.save_pretrained(folder)
        embedder.processor.save_pretrained(folder)
        export = ParallelEmbedder.from_pretrained(folder).eval()
    plain = workload.plain().eval()
    batch = batch_of(pairs(2 if options.tiny else 8), export)
    inputs = batch.chunks[0].inputs
    singles = [export.processor([item], ["query"])[0] for pair in pairs(2 if options.tiny else 4) for item in pair]
    keep = inputs["attention_mask"].bool()
    length = int(keep.sum()) // len(keep)
    states = (
        plain.get_input_embeddings()(inputs["input_ids"][keep][: length * len(keep)])
        .detach()
        .view(len(keep), length, -1)
    )

    @torch.no_grad()
    def floor() -> None:
        plain.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        for _ in range(PATHS):
            plain.language_model(inputs_embeds=states, use_cache=False)

    @torch.no_grad()
    def each(model, **settings) -> None:
        for single in singles:
            model(**single, **settings) if settings else model(single, paths=[0])

    no_grad = torch.no_grad()
    sides = {
        "one_path": no_grad(lambda: export(inputs, paths=[0])),
        "backbone": no_grad(lambda: plain(**inputs, use_cache=False)),
        "one_path_alone": lambda: each(export),
        "backbone_alone": lambda: each(plain, use_cache=False),
        "all_paths": no_grad(lambda: export(inputs)),
        "floor": floor,
    }
    seconds = in_turns(sides, options.pairs)
    targets = [
        at_most(
            "one path over the backbone's forward pass, a mixed batch",
            paired_ratio(seconds, "one_path", "backbone"),
            1.05,
        ),
        at_most(
            "one path over the backbone's forward pass, one input at a time",
            paired_ratio(seconds, "one_path_alone", "backbone_alone"),
            1.05,
        ),
        at_most(
            f"all {PATHS} paths over vision once and {PATHS} decoder passes",
            paired_ratio(seconds, "all_paths", "floor"),
            1.1,
        ),
    ]
    answer(options, __doc__, targets, {**medians(seconds), **shape_of(batch)})


if __name__ == "__main__":
    main()
