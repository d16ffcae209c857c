"""How near is the loader to a bare loop that reads and decodes the same pictures, what does a resume cost, and does
memory stay flat?"""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import webdataset
from common import answer, at_least, at_most, in_fresh_process, start
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from workload import photographs

from data_tools.build.builder import build_shards
from pdfx.config import DataSection
from pdfx.data import TrainLoader
from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint

WORKERS, BATCH, SIDE = 2, 32, 64
FIRST = 8
"""Batches of each side that are not timed."""
FAR = 1_000_000


class Thumbnails:
    """What all sides make of decoded pictures: one small tensor each, so that little is sent between processes."""

    def __call__(self, items: list[dict], sides: list[str]) -> tuple[dict[str, torch.Tensor], int]:
        pictures = [image for item in items for image in item["images"]]
        ids = torch.ones(len(items), 1, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": ids, "pixels": thumbnails(pictures)}, 0


def thumbnails(pictures: list[Image.Image]) -> torch.Tensor:
    small = [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)) for picture in pictures]
    return torch.from_numpy(np.stack(small)) if small else torch.empty(0, SIDE, SIDE, 3, dtype=torch.uint8)


class BareLoop(IterableDataset):
    """Each worker reads every other tar from its beginning to its end and decodes what is a picture."""

    def __init__(self, tars: list[Path]):
        self.tars = tars

    def __iter__(self):
        own = torch.utils.data.get_worker_info()
        pictures = []
        for path in self.tars[own.id :: own.num_workers]:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.name.endswith(".jpg"):
                        pictures.append(Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB"))
                    if len(pictures) == BATCH:
                        yield thumbnails(pictures)
                        pictures = []
        if pictures:
            yield thumbnails(pictures)


def make_shards(folder: Path, count: int) -> Path:
    """Parts of photographs as JPEG, of 200 to 600 pixels a side, each with a short text."""
    draw, pictures, lines = random.Random(0), photographs(), []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        width, height = (min(draw.randint(200, 600), side) for side in picture.size)
        left, top = draw.randint(0, picture.width - width), draw.randint(0, picture.height - height)
        picture.crop((left, top, left + width, top + height)).save(folder / f"{number}.jpg", quality=90)
        lines.append(
            json.dumps({"query": {"text": "", "images": [f"{number}.jpg"]}, "target": {"text": f"picture {number}"}})
        )
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_shards(folder / "records.jsonl", folder, folder / "shards", samples_per_shard=count // 16)
    return folder / "shards"


def open_loader(shards: Path, workers: int = WORKERS, state: dict | None = None) -> TrainLoader:
    return TrainLoader(DataSection(train=str(shards), num_workers=workers), Thumbnails(), 0, 1, BATCH, 1, 0, state)


def ours(shards: Path, count: int) -> Iterator[torch.Tensor]:
    train = open_loader(shards)
    for _ in range(count // BATCH):
        yield next(train).chunks[0].inputs["pixels"]


def bare(shards: Path) -> Iterator[torch.Tensor]:
    return iter(DataLoader(BareLoop(sorted(shards.glob("*.tar"))), batch_size=None, num_workers=WORKERS))


def plain_webdataset(shards: Path) -> Iterator[torch.Tensor]:
    """The pipeline of webdataset's own guide: shards shuffled and split over workers, a shuffle buffer, decoding,
    batches."""
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("query.0.jpg", "json")
    )
    data = data.batched(BATCH, collation_fn=lambda rows: thumbnails([picture for picture, _ in rows]))
    return iter(webdataset.WebLoader(data, batch_size=None, num_workers=WORKERS))


def pictures_per_second(batches: Iterator[torch.Tensor]) -> float:
    """From the batch after the first ones to the last, so that neither the start and the end of workers nor what they
    hold ready counts."""
    for _ in range(FIRST):
        next(batches)
    started = stopped = time.perf_counter()
    pictures = 0
    for batch in batches:
        pictures += len(batch)
        stopped = time.perf_counter()
    return pictures / (stopped - started)


def rates(shards: Path, count: int, pairs: int) -> dict[str, list[float]]:
    """Pictures per second of each side, measured in turns after one warm-up each."""
    sides = {
        "pdfx": lambda: ours(shards, count),
        "bare_loop": lambda: bare(shards),
        "webdataset": lambda: plain_webdataset(shards),
    }
    for name, side in sides.items():
        read = sum(map(len, side()))
        if read != count:
            raise SystemExit(f"{name} read {read} of {count} pictures")
    found = {name: [] for name in sides}
    for number in range(pairs):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            found[name].append(pictures_per_second(sides[name]()))
    return found


def repeated_shards(shards: Path, folder: Path, samples: int) -> Path:
    """At least so many small samples: one shard of texts, linked under many names."""
    folder.mkdir()
    lines = [json.dumps({"query": {"text": f"q{i}"}, "target": {"text": f"t{i}"}}) for i in range(1000)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_shards(folder / "records.jsonl", folder, folder / "one", samples_per_shard=1000)
    entry = ShardIndex.model_validate_json((folder / "one" / "index.json").read_bytes()).shards[0]
    many = folder / "many"
    many.mkdir()
    entries = []
    for number in range(-(-samples // 1000)):
        copy = ShardEntry(name=f"{number:05d}.tar", samples=1000, bytes=entry.bytes, sha256=entry.sha256)
        os.link(folder / "one" / entry.name, many / copy.name)
        os.link(folder / "one" / entry.offsets_name, many / copy.offsets_name)
        entries.append(copy)
    index = ShardIndex(shards=entries, samples=1000 * len(entries), fingerprint=fingerprint(entries))
    (many / "index.json").write_text(index.model_dump_json(), encoding="utf-8")
    return many


def first_batch_seconds(shards: Path, state: dict | None) -> tuple[float, dict]:
    """From nothing to the first batch, in this process, and the state after it."""
    started = time.perf_counter()
    train = open_loader(shards, workers=0, state=state)
    next(train)
    return time.perf_counter() - started, train.state_dict()


def resume_seconds(folder: Path, samples: int) -> dict[str, float]:
    many = repeated_shards(folder, folder / "far", samples * 6 // 5)
    at_start, state = min((first_batch_seconds(many, None) for _ in range(3)), key=lambda found: found[0])
    far, _ = min(
        (first_batch_seconds(many, {**state, "samples": samples}) for _ in range(3)), key=lambda found: found[0]
    )
    return {"first_batch_at_start_seconds": round(at_start, 4), "first_batch_far_in_seconds": round(far, 4)}


def held_by_all() -> int:
    """Memory of this process and its workers that is their own."""
    own = psutil.Process()
    return sum(process.memory_full_info().uss for process in (own, *own.children(recursive=True)))


def memory_growth(shards: Path, count: int) -> dict[str, float]:
    """Held after a fifth of an epoch, at its end, and at the end of another one."""
    train, held = open_loader(shards), []
    for part in (count // 5, count - count // 5, count):
        for _ in range(part // BATCH):
            next(train)
        held.append(held_by_all() / 2**20)
    return {"fifth_mib": round(held[0], 1), "epoch_mib": round(held[1], 1), "second_epoch_mib": round(held[2], 1)}


def main() -> None:
    options = start(__doc__)
    count = 1024 if options.tiny else 8192
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = make_shards(folder, count)
        if options.part == "memory":
            print(json.dumps(memory_growth(shards, count)))
            return
        found = rates(shards, count, options.pairs)
        resume = resume_seconds(folder, 10_000 if options.tiny else FAR)
    memory = in_fresh_process("memory", options)
    over = {
        name: float(np.median([a / b for a, b in zip(found["pdfx"], found[name], strict=True)]))
        for name in ("bare_loop", "webdataset")
    }
    targets = [
        at_least("pictures per second over the bare loop's", over["bare_loop"], 0.9),
        at_least("pictures per second over the plain webdataset pipeline's", over["webdataset"], 1.0),
        at_most(f"seconds to the first batch, {FAR:,} samples in", resume["first_batch_far_in_seconds"], 1.0),
        at_most(
            "memory at the end of an epoch over that after a fifth of it",
            memory["epoch_mib"] / memory["fifth_mib"],
            1.1,
        ),
    ]
    per_second = {f"{name}_pictures_per_second": round(float(np.median(values)), 1) for name, values in found.items()}
    answer(options, __doc__, targets, {**per_second, **resume, **memory, "pictures": count, "workers": WORKERS})


if __name__ == "__main__":
    main()
