"""Small real shards and a small real processor, for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools.build.builder import build_shards
from pdfx.data import ShardedDataset


class ByteProcessor:
    """Tokens are the UTF-8 bytes of side and text; a picture becomes its sum of pixels and its width. Texts are cut at
    ``max_bytes``."""

    def __init__(self, max_bytes: int = 32, max_width: int = 64):
        self.max_bytes, self.max_width = max_bytes, max_width

    def __call__(self, items: list[dict], sides: list[str]) -> tuple[dict[str, torch.Tensor], int]:
        for item in items:
            for image in item["images"]:
                if image.width > self.max_width:
                    raise ValueError(f"a picture is {image.width} pixels wide and {self.max_width} are allowed")
        texts = [item["text"].encode() for item in items]
        tokens = [[ord(side[0]), *text[: self.max_bytes]] for text, side in zip(texts, sides, strict=True)]
        ids = torch.zeros(len(items), max(map(len, tokens)), dtype=torch.int64)
        for row, token in enumerate(tokens):
            ids[row, : len(token)] = torch.tensor(token)
        pixels = [sum(int(np.asarray(image, dtype=np.int64).sum()) for image in item["images"]) for item in items]
        return {"input_ids": ids, "pixels": torch.tensor(pixels)}, sum(len(text) > self.max_bytes for text in texts)


def picture(seed: int, width: int = 12, height: int = 10) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_records(folder: Path, records: list[dict]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_shards(folder: Path, samples: int = 25, samples_per_shard: int = 10) -> Path:
    """Sample i: a text query "query i", a picture as target (its text is "target i"), i % 3 hard negatives."""
    images = folder / "images"
    images.mkdir(parents=True)
    records = []
    for i in range(samples):
        (images / f"{i}.png").write_bytes(picture(i))
        negatives = [{"text": f"negative {m} of {i}"} for m in range(i % 3)]
        records.append(
            {
                "key": f"sample-{i:03d}",
                "query": {"text": f"query {i}"},
                "target": {"text": f"target {i}", "images": [f"{i}.png"]},
                "negatives": negatives,
            }
        )
    build_shards(write_records(folder, records), images, folder / "shards", samples_per_shard)
    return folder / "shards"


def samples_in(shards: Path) -> list[tuple[str, str, dict[str, bytes]]]:
    """(key, record as JSON, members by suffix) of every sample, in order."""
    numbered = [(shard, row) for shard in ShardedDataset(shards).shards for row in range(shard.entry.samples)]
    return [
        (key, record.model_dump_json(), members) for key, record, members in (shard.raw(row) for shard, row in numbered)
    ]


def damage_image(shards: Path, sample: int) -> None:
    """Overwrite the middle of a sample's picture in its tar; every size stays as it was."""
    original = picture(sample)
    for path in sorted(shards.glob("*.tar")):
        data = path.read_bytes()
        place = data.find(original)
        if place >= 0:
            middle = place + len(original) // 2
            path.write_bytes(data[:middle] + bytes(40) + data[middle + 40 :])
            return
    raise AssertionError(f"no shard holds the picture of sample {sample}")
