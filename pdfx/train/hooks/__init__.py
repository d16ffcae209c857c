"""What happens around the steps of a run: one concern a file, each called at the moments that it asks for."""

from pdfx.train.run import Hook

__all__ = ["Hook"]
