"""The names of the files in a run's directory, and the files that come with pdfx beside its code."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
"""The resolved recipe; also in each checkpoint."""
METRICS = "metrics.jsonl"
"""What the run's arithmetic decides, so the same after a resume."""
TIMINGS = "timings.jsonl"
"""What the machine decides."""
CHECKPOINTS = "checkpoints"
LOCK = "lock.json"
"""While the run is going."""
STACKS = "stacks"
"""Where each rank was when the run hung."""
MANIFEST = "manifest.json"
"""In each checkpoint: its files."""


SHIPPED = Path(__file__).parents[1] / "shipped"
"""In a checkout, links to ``launch`` and ``ds_configs``; in an installed package, the files themselves."""
RECIPES = SHIPPED / "launch" / "recipes"
DEEPSPEED = SHIPPED / "ds_configs"


def shipped_files(folder: Path) -> dict[str, Path]:
    """The files of ``RECIPES`` or ``DEEPSPEED`` by the names that recipes use for them, such as ``zero3``."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".json"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
