"""Drawing cards in a grid: each has a heading and one or two cells of a picture and a text."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from .sheet_text import Typeface, fitting_lines

CELL_WIDTH, PICTURE_HEIGHT = 208, 168
_COLUMNS = 3
_MARGIN, _GAP, _PADDING = 24, 16, 14
_CARD_WIDTH = 2 * CELL_WIDTH + 3 * _PADDING
_LINES, _LINES_BELOW_PICTURE = 12, 5
_ENLARGED = 3
"""Small pictures are not drawn larger than so many times their size."""
_TITLE, _TEXT, _SMALL = 24, 15, 12
_LABEL_HEIGHT = 22
_PAPER, _CARD, _EDGE, _FRAME = "#f1f2f6", "#ffffff", "#d9dce3", "#eceef3"
_INK, _DIM, _WARNING = "#1f2430", "#667085", "#b3261e"


@dataclass
class Cell:
    """``picture`` is what ``mosaic`` made, or None where there is only text."""

    label: str
    colour: str
    picture: Image.Image | None
    text: str


@dataclass
class Card:
    """``problem`` takes the place of the cells where a sample cannot be shown."""

    heading: str
    note: str = ""
    cells: list[Cell] = field(default_factory=list)
    problem: str = ""


def mosaic(images: list[Image.Image]) -> Image.Image | None:
    """One picture of ``CELL_WIDTH`` x ``PICTURE_HEIGHT`` pixels that shows the first four images whole; None where there are none."""
    if not images:
        return None
    across, down = min(len(images), 2), 1 if len(images) <= 2 else 2
    width, height = CELL_WIDTH // across, PICTURE_HEIGHT // down
    frame = Image.new("RGB", (CELL_WIDTH, PICTURE_HEIGHT), _FRAME)
    for i, image in enumerate(images[:4]):
        fitted = _fitted(image, width - 4, height - 4)
        left, top = i % 2 * width, i // 2 * height
        frame.paste(fitted, (left + (width - fitted.width) // 2, top + (height - fitted.height) // 2))
    return frame


def draw_sheet(title: str, subtitle: str, cards: list[Card], typeface: Typeface) -> Image.Image:
    """All cards below the title, in rows of three."""
    rows = [[_LaidOut(card, typeface) for card in cards[i : i + _COLUMNS]] for i in range(0, len(cards), _COLUMNS)]
    heights = [max(card.height for card in row) for row in rows]
    head = _line(_TITLE) + _line(_SMALL) + _GAP
    width = 2 * _MARGIN + min(len(cards), _COLUMNS) * (_CARD_WIDTH + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + head + sum(heights) + _GAP * (len(rows) - 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN), fitting_lines(title, typeface.sized(_TITLE), width - 2 * _MARGIN, 1), _TITLE, _INK, typeface)
    _write(draw, (_MARGIN, _MARGIN + _line(_TITLE)), fitting_lines(subtitle, typeface.sized(_SMALL), width - 2 * _MARGIN, 1), _SMALL, _DIM, typeface)
    top = _MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            card.draw(sheet, draw, _MARGIN + column * (_CARD_WIDTH + _GAP), top, height)
        top += height + _GAP
    return sheet


class _LaidOut:
    """A card whose texts are cut into lines, so that its height is known."""

    def __init__(self, card: Card, typeface: Typeface):
        self.card, self.typeface = card, typeface
        self.problem = fitting_lines(card.problem, typeface.sized(_TEXT), _CARD_WIDTH - 2 * _PADDING, _LINES)
        self.texts = [fitting_lines(cell.text, typeface.sized(_TEXT), CELL_WIDTH, _LINES_BELOW_PICTURE if cell.picture else _LINES) for cell in card.cells]
        pictures = [PICTURE_HEIGHT + _PADDING // 2 if cell.picture else 0 for cell in card.cells]
        cells = [_LABEL_HEIGHT + picture + len(lines) * _line(_TEXT) for picture, lines in zip(pictures, self.texts, strict=True)]
        self.height = 2 * _PADDING + _line(_SMALL) + _PADDING // 2 + max([*cells, len(self.problem) * _line(_TEXT)])

    def draw(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, height: int) -> None:
        draw.rounded_rectangle((left, top, left + _CARD_WIDTH - 1, top + height - 1), radius=8, fill=_CARD, outline=_EDGE)
        left, top, bottom, inner = left + _PADDING, top + _PADDING, top + height - _PADDING, _CARD_WIDTH - 2 * _PADDING
        small = self.typeface.sized(_SMALL)
        note_width = int(small.getlength(self.card.note))
        _write(draw, (left + inner - note_width, top), [self.card.note], _SMALL, _DIM, self.typeface)
        _write(draw, (left, top), fitting_lines(self.card.heading, small, inner - note_width - _GAP, 1), _SMALL, _DIM, self.typeface)
        top += _line(_SMALL) + _PADDING // 2
        _write(draw, (left, top), self.problem, _TEXT, _WARNING, self.typeface)
        for number, (cell, lines) in enumerate(zip(self.card.cells, self.texts, strict=True)):
            if number > 0:
                draw.line((left - _PADDING // 2 - 1, top, left - _PADDING // 2 - 1, bottom), fill=_EDGE)
            self._draw_cell(sheet, draw, cell, lines, left, top)
            left += CELL_WIDTH + _PADDING

    def _draw_cell(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, lines: list[str], left: int, top: int) -> None:
        _write(draw, (left, top), [cell.label], _SMALL, cell.colour, self.typeface)
        top += _LABEL_HEIGHT
        if cell.picture:
            sheet.paste(cell.picture, (left, top))
            top += PICTURE_HEIGHT + _PADDING // 2
        _write(draw, (left, top), lines, _TEXT, _INK, self.typeface)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], pixels: int, colour: str, typeface: Typeface) -> None:
    for i, line in enumerate(lines):
        draw.text((place[0], place[1] + i * _line(pixels)), line, fill=colour, font=typeface.sized(pixels))


def _line(pixels: int) -> int:
    return pixels * 27 // 20


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height, _ENLARGED)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
