"""A few raw inputs with the trainer's own embeddings of them, kept in every checkpoint: what converts the checkpoint
can prove itself on them.

``probe/items.json`` is a list of ``{"side", "text", "images": [file names]}``, its pictures lie beside it as PNG, and
``probe/embeddings.safetensors`` holds ``paths`` ``[n, K, D]`` and ``fused`` ``[n, F]`` in the same order.
"""

from __future__ import annotations

import json
from pathlib import Path

import deepspeed
import torch

from pdfx.data import SampleError, ShardedDataset
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.host.tensor_files import Entry, write_tensors
from pdfx.model import EmbedderOutput, InputProcessor

SAMPLES = 3
"""Both sides of so many samples are probed."""
SEARCHED = 16
"""Samples looked at in search of usable ones."""


class Probe:
    """The probe of a run; the same on every rank.

    Args:
        dataset: its first usable samples are taken, those with images before those without.
        processor: makes the inputs.

    Raises:
        UserError: no sample near the beginning is usable.
    """

    def __init__(self, dataset: ShardedDataset, processor: InputProcessor):
        samples = []
        for number in range(min(len(dataset), SEARCHED)):
            try:
                samples.append(dataset.read(number))
            except SampleError:
                continue
        if not samples:
            raise UserError(
                f"None of the first samples of {dataset.path} can be read; check the shards with 'pdfx shards check "
                "--full'."
            )
        samples.sort(key=lambda sample: not (sample.query["images"] or sample.target["images"]))
        self.items = [(side, getattr(sample, side)) for sample in samples[:SAMPLES] for side in ("query", "target")]
        self.processor = processor

    def write(self, directory: Path, engine: deepspeed.DeepSpeedEngine, world: World) -> None:
        """Embed the items on all ranks together and let rank 0 write them."""
        sides, items = zip(*self.items, strict=True)
        output = embed_inputs(engine, self.processor(list(items), list(sides))[0], world)
        if world.rank != 0:
            return
        directory.mkdir()
        entries = []
        for number, (side, item) in enumerate(self.items):
            names = [f"{number}.{place}.png" for place in range(len(item["images"]))]
            for name, image in zip(names, item["images"], strict=True):
                image.save(directory / name)
            entries.append({"side": side, "text": item["text"], "images": names})
        (directory / "items.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
        tensors = {name: output[name].cpu().contiguous() for name in ("paths", "fused")}
        write_tensors(
            directory / "embeddings.safetensors",
            [(Entry(name, value.dtype, tuple(value.shape)), [value]) for name, value in tensors.items()],
            {},
        )


def embed_inputs(engine: deepspeed.DeepSpeedEngine, inputs: dict[str, torch.Tensor], world: World) -> EmbedderOutput:
    """Embed without gradient and without dropout. Under ZeRO-3 all ranks must call this together, each with inputs of
    its own."""
    training = engine.module.training
    engine.eval()
    try:
        with torch.no_grad():
            paths, fused, *_ = engine({name: tensor.to(world.device) for name, tensor in inputs.items()})
    finally:
        engine.train(training)
    return EmbedderOutput(paths=paths, fused=fused)
