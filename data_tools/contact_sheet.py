"""A picture that shows some of the pairs that a directory of shards holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.errors import UserError
from pdfx.files import write_atomically
from pdfx.model.pictures import MAX_IMAGE_PIXELS

from .build import Progress
from .parts import drawn_samples
from .sheet_drawing import Card, Cell, draw_sheet, mosaic
from .sheet_text import Typeface

SHEET_SAMPLES = 24
_COLOURS = {"query": "#0072b2", "target": "#a65e00"}


@dataclass(frozen=True)
class SheetSummary:
    """``lacking``: how many of the shown samples have characters in their texts that the font lacks. Sizes are in pixels."""

    samples: int
    lacking: int
    width: int
    height: int


def write_contact_sheet(
    path: str | Path,
    file: Path,
    samples: int = SHEET_SAMPLES,
    font: Path | None = None,
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> SheetSummary:
    """Write a PNG with a grid of pairs, drawn evenly and always the same ones: key, pictures and texts of query and target, number of hard negatives.

    A sample that cannot be used is shown as the sentence that says why.

    Args:
        samples: how many to show, at most.
        font: font file for the texts; see ``Typeface``.
        progress: called with (samples drawn, samples to draw).

    Raises:
        UserError: there are no complete shards, they hold no samples, the font cannot be used, or ``file`` is not named as a PNG.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"The contact sheet {file} would be a PNG; give it a name that ends with '.png'.")
    typeface = Typeface(font)
    dataset = ShardedDataset(path, max_image_pixels)
    numbers = drawn_samples(len(dataset), samples)
    if not numbers:
        raise UserError(f"{path} holds no samples, so there is nothing to show.")
    cards = []
    for number in numbers:
        cards.append(_card(dataset, number))
        if progress:
            progress(len(cards), len(numbers))
    sheet = draw_sheet(str(path), f"{len(numbers):,} of {len(dataset):,} samples \u00b7 fingerprint {dataset.fingerprint[:12]}", cards, typeface)
    with write_atomically(file) as stream:
        sheet.save(stream, "PNG")
    lacking = sum(any(typeface.lacks(cell.text) for cell in card.cells) for card in cards)
    return SheetSummary(len(numbers), lacking, *sheet.size)


def _card(dataset: ShardedDataset, number: int) -> Card:
    try:
        sample = dataset.read(number)
    except SampleError as error:
        return Card(error.key or f"sample {number}", problem=str(error))
    count = len(sample.negatives)
    note = f"{count} hard negative{'s' if count > 1 else ''}" if count else ""
    return Card(sample.key, note, [_cell("query", sample.query), _cell("target", sample.target)])


def _cell(name: str, item: dict | None) -> Cell:
    if item is None:
        return Cell(f"no {name}", _COLOURS[name], None, "")
    count = len(item["images"])
    label = f"{name} \u00b7 {count} pictures" if count > 1 else name
    return Cell(label, _COLOURS[name], mosaic(item["images"]), item["text"])
