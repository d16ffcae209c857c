"""The embedder: torch and transformers alone, because this folder travels inside an export as its remote code."""

from .configuration import ParallelEmbedderConfig
from .modeling import EmbedderOutput, ParallelEmbedder, join_outputs
from .processing import InputProcessor
from .vision_cache import cache_vision_tower

__all__ = ["EmbedderOutput", "InputProcessor", "ParallelEmbedder", "ParallelEmbedderConfig", "cache_vision_tower", "join_outputs"]
