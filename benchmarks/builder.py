"""Does a second worker pay when shards are built from photographs, and does the builder's memory stay flat?"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import PIL
from common import answer, at_least, at_most, in_turns, start
from PIL import Image
from workload import photographs


def write_records(folder: Path, count: int, smallest: int, largest: int) -> Path:
    """Photographs as JPEG, with a longer side of ``smallest`` to ``largest`` pixels, each with a short text."""
    draw, pictures, lines = random.Random(0), photographs(), []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        scale = draw.randint(smallest, largest) / max(picture.size)
        picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=95
        )
        lines.append(json.dumps({"query": {"images": [f"{number}.jpg"]}, "target": {"text": f"photograph {number}"}}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def start_command(records: Path, workers: int, *options: str) -> subprocess.Popen:
    out = records.parent / "shards"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pdfx",
        "shards",
        "build",
        str(records),
        "--out",
        str(out),
        "--samples-per-shard",
        "128",
        "--workers",
        str(workers),
    ]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)


def build_with(workers: int, records: Path) -> None:
    """The whole command, with its start and that of its workers; pictures are shrunk and encoded again."""
    assert start_command(records, workers, "--resize", "512", "--image-format", "jpeg", "--quality", "90").wait() == 0


def peak_of_command(records: Path) -> float:
    """MiB that the main process of the command held at most; pictures stay as they are."""
    process = start_command(records, 2)
    peak = 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        # A process that has just ended has no such line.
        peak = max([peak, *(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.01)
    assert process.returncode == 0
    return peak


def main() -> None:
    options = start(__doc__)
    count, small = (16, 16) if options.tiny else (1000, 400)
    with tempfile.TemporaryDirectory() as name:
        timed, few, many = (Path(name) / part for part in ("timed", "few", "many"))
        for folder in (timed, few, many):
            folder.mkdir()
        records = write_records(timed, count, 600, 1600)
        seconds = in_turns(
            {"one": lambda: build_with(1, records), "two": lambda: build_with(2, records)}, options.pairs
        )
        memory = {
            size: peak_of_command(write_records(folder, samples, 200, 500))
            for size, folder, samples in (("n", few, small), ("4n", many, 4 * small))
        }
        megabytes = {
            size: sum(path.stat().st_size for path in folder.glob("*.jpg")) / 2**20
            for size, folder in (("n", few), ("4n", many))
        }
    speedup = statistics.median(one / two for one, two in zip(seconds.wall["one"], seconds.wall["two"], strict=True))
    targets = [
        at_least("times faster with two workers than with one", speedup, 1.7),
        at_most(
            f"peak memory of the main process at {4 * small} samples over that at {small}",
            memory["4n"] / memory["n"],
            1.1,
        ),
    ]
    details = {f"peak_mib_{size}": round(value, 1) for size, value in memory.items()}
    details |= {f"pictures_mib_{size}": round(value, 1) for size, value in megabytes.items()}
    details |= {
        "pictures": count,
        "pillow": PIL.__version__,
        "pictures_per_second_two": round(count / statistics.median(seconds.wall["two"]), 1),
    }
    answer(
        options,
        __doc__,
        targets,
        {**{f"{side}_seconds": round(statistics.median(wall), 2) for side, wall in seconds.wall.items()}, **details},
    )


if __name__ == "__main__":
    main()
