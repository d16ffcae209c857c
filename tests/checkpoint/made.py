"""Checkpoints made of a few bytes, by the code that seals real ones."""

from pathlib import Path

from pdfx.checkpoint.directory import directory_name
from pdfx.checkpoint.manifest import Manifest, Metric, write_manifest
from pdfx.config.run_files import CHECKPOINTS
from pdfx.host.files import write_checksummed


def make_checkpoint(run: Path, step: int, metric: float | None = None, files: dict[str, bytes] | None = None) -> Path:
    """A whole checkpoint with two files and those of ``files``; ``metric`` is its value of ``score``."""
    path = run / CHECKPOINTS / directory_name(step)
    for folder in ("parameters", "state"):
        (path / folder).mkdir(parents=True)
    contents = dict.fromkeys(
        ("config.yaml", "parameters/rank-00000-of-00001.safetensors"), bytes([step % 256]) * 100
    ) | (files or {})
    files = {name: write_checksummed(path / name, data) for name, data in contents.items()}
    write_manifest(path, Manifest(step, files, None if metric is None else Metric("score", metric)))
    return path


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
