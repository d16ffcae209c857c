"""From a run's checkpoint to a Hugging Face directory that proves itself, in pieces: no step holds more than one weight
in memory."""

from pdfx.convert.conversion import convert
from pdfx.host import make_callable

__all__ = ["convert"]
make_callable(__name__, convert)
