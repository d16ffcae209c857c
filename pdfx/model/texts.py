"""Which texts say something."""

import unicodedata

_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00\ufe0e\ufe0f\uffa0"
"""Letters and marks that Unicode gives no shape."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space, control characters and invisible marks alone."""
    return all(
        character in _FILLERS or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
        for character in text
    )
