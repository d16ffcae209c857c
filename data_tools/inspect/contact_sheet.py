"""An HTML page that shows some of the pairs that a directory of shards holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_tools.build.ordered_workers import drawn_samples
from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress
from pdfx.host.files import write_atomically
from pdfx.host.html import render_page, thumbnail
from pdfx.model.pictures import MAX_IMAGE_PIXELS

SHEET_SAMPLES = 24
PICTURES = 4
"""Pictures of a query or a target that are shown."""
THUMBNAIL = 240
"""Longest side in pixels."""
TEXT_CHARACTERS = 2000


def write_contact_sheet(
    path: str | Path,
    file: Path,
    samples: int = SHEET_SAMPLES,
    progress: ShowProgress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> int:
    """Write an HTML page with a grid of pairs, drawn evenly and always the same ones: key, pictures and texts of query
    and target, number of hard negatives.

    The page holds everything it shows and loads nothing. A sample that cannot be used is shown as the sentence that
    says why.

    Args:
        samples: how many to show, at most.
        progress: called with (samples drawn, samples to draw).

    Returns:
        How many are shown.

    Raises:
        UserError: there are no complete shards, they hold no samples, or ``file`` is not named as an HTML page.
    """
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"The contact sheet {file} would be an HTML page; give it a name that ends with '.html'.")
    dataset = ShardedDataset(path, max_image_pixels)
    numbers = drawn_samples(len(dataset), samples)
    if not numbers:
        raise UserError(f"{path} holds no samples, so there is nothing to show.")
    cards = []
    for number in numbers:
        cards.append(_card(dataset, number))
        if progress:
            progress(len(cards), len(numbers))
    page = render_page(
        "data_tools.inspect",
        "contact_sheet.html.j2",
        title=str(dataset.path),
        subtitle=f"{len(numbers):,} of {len(dataset):,} samples \u00b7 fingerprint {dataset.fingerprint[:12]}",
        cards=cards,
    )
    with write_atomically(file) as stream:
        stream.write(page.encode(errors="replace"))
    return len(numbers)


def _card(dataset: ShardedDataset, number: int) -> dict[str, Any]:
    """One sample for the template; ``problem`` takes the place of its sides if it cannot be used."""
    try:
        sample = dataset.read(number)
    except SampleError as error:
        return {"key": error.key or f"sample {number}", "note": "", "sides": [], "problem": str(error)}
    count = len(sample.negatives)
    note = f"{count} hard negative{'s' if count > 1 else ''}" if count else ""
    sides = [_shown("query", sample.query), _shown("target", sample.target)]
    return {"key": sample.key, "note": note, "sides": sides, "problem": ""}


def _shown(name: str, item: dict | None) -> dict[str, Any]:
    """A query or target for the template; ``images`` holds data URIs."""
    if item is None:
        return {"name": name, "label": f"no {name}", "text": "", "images": []}
    count, text = len(item["images"]), item["text"]
    return {
        "name": name,
        "label": f"{name} \u00b7 {count} pictures" if count > 1 else name,
        "text": text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "\u2026",
        "images": [thumbnail(image, THUMBNAIL) for image in item["images"][:PICTURES]],
    }
