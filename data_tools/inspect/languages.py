"""The languages of texts, as far as they can be told."""

from __future__ import annotations

import tempfile
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pdfx.host.system_errors import naming

UNDETERMINED = "undetermined"
MINIMUM_BYTES = 24
"""Shorter texts, in UTF-8, are not judged: about four words of a European language, eight characters of Chinese."""
_MAXIMUM_CHARACTERS = 1000
_MINIMUM_CONFIDENCE = 0.5


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language, or ``UNDETERMINED`` where the text is too short to be judged or fits
    several languages."""
    text = " ".join(text[:_MAXIMUM_CHARACTERS].split())
    if len(text.encode()) < MINIMUM_BYTES:
        return UNDETERMINED
    language, _ = _identifier().classify(text)
    return UNDETERMINED if language == "und" else language


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    # It unpacks its model into a temporary file.
    with naming(tempfile.gettempdir()):
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_MINIMUM_CONFIDENCE)
