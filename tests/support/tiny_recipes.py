"""Recipes as texts."""

from pathlib import Path


def recipe(folder: Path, sections: str = "", **values: str) -> Path:
    """A valid recipe with ``values`` in its ``train`` section, written as they are."""
    train = {
        "output_dir": "run",
        "deepspeed": "zero.json",
        "max_steps": "5",
        "per_device_train_batch_size": "2",
        **values,
    }
    lines = [
        "model:",
        "  path: backbone",
        "data:",
        "  train: shards",
        "train:",
        *(f"  {key}: {value}" for key, value in train.items()),
    ]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines) + "\n" + sections)
    return path
