"""Modules that can be called: ``pdfx.train`` is a package, and ``pdfx.train(config)`` is the function of its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(module: str, function: Callable) -> None:
    """Let an imported module be called as ``function``."""
    kind = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[module].__class__ = kind
    # For editors and help(): the signature of a call.
    sys.modules[module].__wrapped__ = function
