"""Small real recipes: a tiny backbone, real shards of texts and pictures, and a configuration that trains on them."""

import json
from collections.abc import Callable
from pathlib import Path

from tiny_models import SENTENCES, picture, tiny_backbone

from data_tools.build.builder import build_shards
from pdfx.config import Config, parse_config

ROOT = Path(__file__).parents[2]


def tiny_shards(
    directory: Path,
    samples: int = 24,
    hard_negatives: int = 0,
    with_picture: Callable[[int], bool] = lambda i: i % 3 != 0,
) -> Path:
    """Build shards once per directory: some samples without a picture, every third unless said otherwise, and texts of
    several lengths."""
    shards = directory / "shards"
    if (shards / "index.json").exists():
        return shards
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(samples):
        name = f"{i}.png"
        picture(i, (40 + 8 * (i % 3), 48)).save(directory / name)
        query = {
            "text": f"number {i} " + SENTENCES[i % len(SENTENCES)] * (1 + i % 2),
            "images": [name] if with_picture(i) else [],
        }
        negatives = [{"text": f"not {i} but {i + j + 1}", "images": []} for j in range(hard_negatives)]
        lines.append(
            json.dumps(
                {
                    "key": f"sample{i}",
                    "query": query,
                    "target": {"text": f"the answer to {i}", "images": []},
                    "negatives": negatives,
                }
            )
        )
    records = directory / "records.jsonl"
    records.write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_shards(records, directory, shards, samples_per_shard=10)
    return shards


def tiny_tree(directory: Path, family: str = "qwen2_vl", stage: str = "zero2", **sections: dict) -> dict:
    """The recipe as a tree of plain values; ``sections`` are merged over the defaults."""
    tree = {
        "model": {"path": str(tiny_backbone(family, directory / family)), "paths": 2, "prefix": {"length": 3}},
        "inputs": {"max_text_tokens": 24},
        "data": {"train": str(tiny_shards(directory / "data")), "num_workers": 0, "span_samples": 4},
        "objective": {"temperature": 0.1, "recent": {"rows": 64}},
        "train": {
            "output_dir": str(directory / "run"),
            "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json"),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "bf16": False,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "tensorboard": False,
        },
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return tree


def hook_of(trainer, name: str):
    """The trainer's hook of the class of that name."""
    return next(hook for hook in trainer.hooks if type(hook).__name__ == name)


def tiny_config(directory: Path, family: str = "qwen2_vl", stage: str = "zero2", **sections: dict) -> Config:
    """The same, validated."""
    return parse_config(tiny_tree(directory, family, stage, **sections))
