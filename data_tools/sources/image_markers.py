"""Taking the places of images out of texts that were written for one family of models.

Our processor puts every image before the text in the way of the model's own family, so a marker in the text would only
be noise. Where a sentence uses the marker as a word, it becomes words.
"""

from __future__ import annotations

import re

_MARKER = r"(?:<\|image_[0-9]+\|>|<\|image_pad\|>|<image>)"
_MARKERS = re.compile(rf"[^\S\n]*{_MARKER}(?:[^\S\n]*{_MARKER})*[^\S\n]*")
_LINES_OF_MARKERS = re.compile(rf"^[^\S\n]*(?:{_MARKER}[^\S\n]*)+\n", re.MULTILINE)

_IN_APPOSITION = re.compile(rf"\b(image|picture|photo),[^\S\n]*{_MARKER}(?=,)")

_IMAGE_NAMED = ("image", "picture", "photo")
_NEEDS_NOUN = ("the", "a", "this", "given", "provided", "following")
_VERB = re.compile(r"(?:is|can|has|shows|contains|depicts|should|must|will)\b")


def has_marker(text: str) -> bool:
    return "<" in text and re.search(_MARKER, text) is not None


def without_markers(text: str) -> str:
    """The text without image markers and without white space around it.

    A marker that stands alone, or before or after a sentence, is removed. One that is a word of a sentence becomes "the
    image", or "image" after an article.

    >>> without_markers("<|image_1|>\\nRepresent the given image.")
    'Represent the given image.'
    >>> without_markers("Evaluate <|image_1|> and provide a label.")
    'Evaluate the image and provide a label.'
    """
    if not has_marker(text):
        return text.strip()
    return _MARKERS.sub(_words, _IN_APPOSITION.sub(r"\1", _LINES_OF_MARKERS.sub("", text))).strip()


def _words(match: re.Match) -> str:
    before = match.string[: match.start()].rpartition("\n")[2]
    after = match.string[match.end() :]
    space = " " if after and not re.match(r"[\s.,:;!?)]", after) else ""
    if not before or before[-1] in ".!?":
        words = "The image" if _VERB.match(after) else ""
    elif before[-1] in ":;" or before.split()[-1].casefold() in _IMAGE_NAMED:
        words = ""
    else:
        words = "image" if before.split()[-1].casefold() in _NEEDS_NOUN else "the image"
    if not before:
        return f"{words}{space}" if words else ""
    return f" {words}{space}" if words else space
