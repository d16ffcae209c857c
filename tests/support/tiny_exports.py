"""A small real export: random weights, K paths far apart, written as a model directory."""

from pathlib import Path

from tiny_models import tiny_backbone

from pdfx.model import ParallelEmbedder

PATHS = 3
HIDDEN = 32


def tiny_export(directory: Path, family: str = "llava_next") -> Path:
    """Write an export beside its backbone under ``directory`` and return it."""
    backbone = tiny_backbone(family, directory / "backbone", hidden=HIDDEN)
    embedder = ParallelEmbedder.from_backbone(
        str(backbone),
        paths=PATHS,
        prefix_length=4,
        prefix_init_std=1.0,
        inputs={"query_instruction": "find: ", "target_instruction": ""},
    )
    export = directory / "export"
    embedder.save_pretrained(export)
    return export
