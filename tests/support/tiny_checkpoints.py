"""Trained embedders and checkpoints of them, without training."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pdfx.checkpoint.directory import BUFFERS, PARAMETERS, Checkpoint
from pdfx.checkpoint.manifest import Manifest
from pdfx.checkpoint.parameters import MASTER, part_file_name, parts_metadata
from pdfx.config import Config, parse_config
from pdfx.embedder.build import build_embedder
from pdfx.host.files import read_record
from pdfx.model import ParallelEmbedder


def recipe(path: Path, **model) -> Config:
    train = {"output_dir": "run", "deepspeed": "zero.json", "per_device_train_batch_size": 4, "max_steps": 10}
    settings = {"path": str(path), "paths": 2, "prefix": {"length": 3}, "fusion": "softmax"} | model
    return parse_config({"model": settings, "data": {"train": "unused"}, "train": train})


def trained(config: Config) -> ParallelEmbedder:
    """The recipe's embedder after its trained parameters moved."""
    embedder, generator = build_embedder(config).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in embedder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return embedder


def checkpoint_of(embedder: ParallelEmbedder, folder: Path, ranks: int) -> Checkpoint:
    """What so many ranks under ZeRO-3 would have saved: each parameter cut into equal parts, the last one shorter or
    empty."""
    (folder / PARAMETERS).mkdir(parents=True)
    (folder / BUFFERS).parent.mkdir()
    values = {
        f"embedder.{name}": parameter.detach()
        for name, parameter in embedder.named_parameters()
        if parameter.requires_grad
    }
    for rank in range(ranks):
        tensors, starts = {}, {}
        for name, value in values.items():
            size = -(-value.numel() // ranks)
            part = value.reshape(-1)[rank * size : (rank + 1) * size]
            if len(part):
                tensors[f"{MASTER}/{name}"], starts[name] = part.clone(), rank * size
        metadata = parts_metadata(starts, {name: tuple(value.shape) for name, value in values.items()})
        save_file(tensors, folder / PARAMETERS / part_file_name(rank, ranks), metadata)
    save_file({}, folder / BUFFERS)
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
    return Checkpoint(folder, Manifest(7, {name: read_record(folder / name) for name in written}))
