"""Shards that hold every malformed picture and sample, as they are after something went wrong behind the builder's
back."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np

from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint

from .broken_pictures import broken_pictures
from .pictures import Picture
from .samples import TarSample, damaged_samples, member, odd_samples, pack, record
from .sound_pictures import sound_pictures

SAMPLES_PER_SHARD = 64


def malformed_samples() -> list[TarSample]:
    """All of them, sound ones among damaged ones, with what must come of each."""
    pictures = [
        _with_picture(number, picture) for number, picture in enumerate([*sound_pictures(), *broken_pictures()])
    ]
    samples = [*odd_samples(), *damaged_samples(), *pictures]
    return [samples[i] for i in np.random.default_rng(1).permutation(len(samples))]


def damaged_shards(folder: Path) -> tuple[Path, list[TarSample]]:
    """Write a directory of shards whose index fits, and whose samples are ``malformed_samples()`` in their order;
    returns both."""
    out, samples, entries = folder / "malformed", malformed_samples(), []
    out.mkdir(parents=True)
    rest = iter(samples)
    while some := list(islice(rest, SAMPLES_PER_SHARD)):
        entries.append(_write_shard(out, f"{len(entries):05d}", [sample.data for sample in some]))
    index = ShardIndex(shards=entries, samples=len(samples), fingerprint=fingerprint(entries))
    (out / "index.json").write_text(index.model_dump_json(), encoding="utf-8")
    return out, samples


def _write_shard(out: Path, name: str, samples: list[bytes]) -> ShardEntry:
    # The checksum is the one from before the damage, of which there is none: reading does not look at it.
    data = b"".join(samples) + bytes(1024)
    (out / f"{name}.tar").write_bytes(data)
    np.save(out / f"{name}.idx.npy", np.cumsum([0, *map(len, samples)], dtype=np.int64))
    return ShardEntry(name=f"{name}.tar", samples=len(samples), bytes=len(data), sha256="0" * 64)


def _with_picture(number: int, picture: Picture) -> TarSample:
    """A sample whose query has the picture, under an extension that says nothing of its format."""
    key, text = f"picture-{number:03d}", picture.name
    content = json.dumps(record(query={"text": text, "images": ["query.0.jpg"]})).encode()
    data = pack([member(f"{key}.json", content), member(f"{key}.query.0.jpg", picture.data)])
    if picture.pixels is not None:
        return TarSample(key, data, text)
    return TarSample(key, data, kind="picture", reason=picture.reason)
