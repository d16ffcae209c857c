"""From a run's checkpoint to a Hugging Face directory that proves itself, weight by weight."""

from pdfx.convert.conversion import convert
from pdfx.host import make_callable

__all__ = ["convert"]
make_callable(__name__, convert)
