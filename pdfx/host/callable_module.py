"""Modules that can be called: ``pdfx.train`` is a package, and ``pdfx.train(config)`` is the function of its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(module: str, function: Callable) -> None:
    """Let an imported module be called as ``function``."""
    # The second name gives editors and help() the signature of a call.
    call = staticmethod(function)
    sys.modules[module].__class__ = type("CallableModule", (ModuleType,), {"__call__": call, "__wrapped__": call})
