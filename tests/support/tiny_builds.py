"""Small sources for builds of shards, and comparing what comes out."""

from __future__ import annotations

from pathlib import Path

from tiny_shards import picture, write_records


def content(folder: Path) -> dict[str, bytes]:
    """All files; folders fail."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mixed_records(folder: Path, count: int, pictures: int, **size: int) -> Path:
    """Of each ten: eight with a picture each, one without its picture, and one that repeats the first."""
    (folder / "images").mkdir()
    for i in range(pictures):
        (folder / "images" / f"{i}.png").write_bytes(picture(i, **size))
    records = []
    for i in range(count):
        target = {"text": f"target {i}", "images": [f"{i % pictures}.png" if i % 10 != 4 else "absent.png"]}
        records.append(
            {"query": {"text": f"query {i}"}, "target": target}
            if i % 10 != 7
            else {**records[i - 7], "key": f"again-{i}"}
        )
    return write_records(folder, records)
