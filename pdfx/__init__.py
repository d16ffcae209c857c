"""pdfx: training of parallel multimodal embeddings under mutual-information minimisation.

``import pdfx`` imports nothing else: what a name stands for is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {"ParallelEmbedder": "model", "ShardedDataset": "data", "load_config": "config"}
_CALLABLE_ROOMS = ("convert", "evaluate", "train")

__all__ = [*_ROOMS, *_CALLABLE_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
