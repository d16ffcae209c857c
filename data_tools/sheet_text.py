"""Text in pictures: fonts, what they can show, and lines that fit a width."""

from __future__ import annotations

import bisect
import unicodedata
from functools import cached_property
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from pdfx.errors import UserError

ELLIPSIS = "\u2026"
_SPACES = ("Cc", "Zl", "Zp", "Zs")
_LONGEST = 2000
"""Characters of a text that are looked at; no cell shows more."""


class Typeface:
    """A font file in several sizes.

    Args:
        file: TrueType or OpenType; by default DejaVu Sans, which has the letters of most alphabets, but no Chinese, Japanese or Korean signs and no emoji.

    Raises:
        UserError: the file is missing, or is no font that can be drawn in any size.
    """

    def __init__(self, file: Path | None = None):
        self.file = file if file is not None else Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        if not self.file.is_file():
            raise UserError(f"There is no font file {self.file}.")
        self._sizes: dict[int, ImageFont.FreeTypeFont] = {}
        self.sized(12)

    def sized(self, pixels: int) -> ImageFont.FreeTypeFont:
        if pixels not in self._sizes:
            try:
                self._sizes[pixels] = ImageFont.truetype(str(self.file), pixels)
            except OSError as error:
                raise UserError(f"The font {self.file} cannot be drawn ({error}); give a TrueType or OpenType font with outlines.") from None
        return self._sizes[pixels]

    def lacks(self, text: str) -> bool:
        """Whether the font has no sign for one of the text's characters; boxes stand in their places."""
        return any(ord(character) not in self._characters for character in printable(text) if character != " ")

    @cached_property
    def _characters(self) -> set[int]:
        return set(FT2Font(str(self.file)).get_charmap())


def printable(text: str) -> str:
    """One line: white space and control characters become single spaces, invisible marks are left out."""
    categories = zip(text, map(unicodedata.category, text), strict=True)
    return " ".join("".join("" if category == "Cf" else " " if category in _SPACES else character for character, category in categories).split())


def fitting_lines(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int) -> list[str]:
    """At most ``limit`` lines of at most ``width`` pixels, an ellipsis at their end where more would follow."""
    rest, lines = printable(text[:_LONGEST]), []
    while rest and len(lines) < limit:
        line = _first_line(rest, font, width)
        lines.append(line)
        rest = rest[len(line) :].lstrip()
    if rest:
        lines[-1] = _shortened(lines[-1], font, width)
    return lines


def _first_line(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The longest beginning that fits, up to the end of a word where it holds one; one character at least."""
    fits = max(1, bisect.bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count])))
    space = text.rfind(" ", 0, fits + 1)
    return text if fits == len(text) else text[: space if space > 0 else fits]


def _shortened(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while line and font.getlength(line + ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip() + ELLIPSIS
