"""This machine: files and their checksums, memory, URLs, console and progress."""

import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(module: str, function: Callable) -> None:
    """Let an imported module be called as ``function``: ``pdfx.train(config)`` works, ``pdfx.train`` is a package."""
    # The second name gives editors and help() the signature of a call.
    call = staticmethod(function)
    sys.modules[module].__class__ = type("CallableModule", (ModuleType,), {"__call__": call, "__wrapped__": call})
