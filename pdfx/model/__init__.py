"""The embedder: torch, transformers, Pillow and numpy alone, because this folder travels inside an export as its remote
code.

A name's file is imported when the name is first asked for: what only opens pictures does so without torch.
"""

from importlib import import_module
from typing import Any

_FILES = {
    "EmbedderOutput": "fusion",
    "InputProcessor": "processing",
    "ParallelEmbedder": "modeling",
    "ParallelEmbedderConfig": "configuration",
    "cache_vision_tower": "vision_cache",
    "join_outputs": "fusion",
}

__all__ = list(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
