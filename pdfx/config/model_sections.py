"""The sections ``model`` and ``inputs``: the embedder, and how a picture or text becomes its input."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pdfx.config.section import LocalPath, PathText, Section


class LoraSection(Section):
    """Low-rank adapters through PEFT on the language model (values of the VLM2Vec recipe)."""

    r: int = Field(8, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: list[str] = Field(["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], min_length=1)
    dora: bool = False


class PrefixSection(Section):
    """Deep prefixes: P key/value pairs per path in each chosen decoder layer. The values are ours; the paper does not
    give them."""

    length: int = Field(48, ge=0)
    layers: Literal["all"] | int | list[int] = "all"
    """``all``, a number m (layers m and up), or a list of layer numbers."""
    init: Literal["normal", "tokens"] = "tokens"
    """``tokens``: the layer's own keys and values of random vocabulary tokens, so that paths start apart; ``normal``:
    independent draws of ``init_std``."""
    init_std: float = Field(0.02, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    """Own learning rate; the run's ``train.learning_rate`` if null."""


class ModelSection(Section):
    path: PathText
    """Directory or hub name of the backbone."""
    revision: str | None = None
    trust_remote_code: bool = False
    modules: list[LocalPath] = []
    """Python files that register the backbone's own classes with transformers; they travel in the export."""
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    paths: int = Field(4, ge=1)
    prefix: PrefixSection = PrefixSection()
    pooling: Literal["last", "mean"] = "last"
    fusion: Literal["mean", "softmax", "routed", "concat"] = "mean"
    """``softmax``: a learned weighted sum; ``routed``: one whose weights depend on the input."""
    matryoshka_dims: list[int] = []
    """Leading dimensions that are trained as embeddings of their own, beside the full one."""
    lora: LoraSection | None = LoraSection()
    """Null for full fine-tuning."""
    train_vision: bool = False
    train_projector: bool | None = None
    """Null: trained under full fine-tuning, frozen under LoRA."""
    cache_vision: bool = False
    """Keep a frozen vision tower's outputs by the pixels' hash; exact, and useless if augmentation changes the
    pictures."""
    cache_vision_gigabytes: float = Field(4.0, gt=0)
    """Of host memory."""
    cache_vision_file: LocalPath | None = None
    """Also keep the outputs in this file, on a disk of the machine, for later runs with the same tower and
    pictures."""
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def check(self):
        if self.paths > 1 and self.prefix.length == 0:
            raise ValueError(
                "prefix.length is 0 with more than one path, so all paths would be the same function; set a length "
                "of 1 or more"
            )
        if self.matryoshka_dims and self.fusion == "concat":
            raise ValueError(
                "matryoshka_dims cannot go with fusion 'concat', whose leading dimensions are the first path's; use "
                "'mean', 'softmax' or 'routed'"
            )
        if self.cache_vision and self.train_vision:
            raise ValueError("cache_vision needs a frozen vision tower; set train_vision or cache_vision to false")
        return self


class InputsSection(Section):
    """How a text and its images become tokens; travels in the export."""

    query_instruction: str = ""
    target_instruction: str = ""
    max_text_tokens: int = Field(512, ge=1)
    """Longer texts are cut at the text, counted and said; images are never cut."""
    image_min_pixels: int | None = Field(None, ge=1)
    image_max_pixels: int | None = Field(None, ge=1)
    """Bounds of a picture's area after resizing (Qwen2-VL)."""
    image_grid_pinpoints: list[tuple[int, int]] | None = None
    """Resolutions (height, width) that a picture may be tiled to (LLaVA-NeXT)."""

    @model_validator(mode="after")
    def check(self):
        if (
            self.image_min_pixels is not None
            and self.image_max_pixels is not None
            and self.image_min_pixels > self.image_max_pixels
        ):
            raise ValueError(
                f"image_min_pixels ({self.image_min_pixels}) is larger than image_max_pixels "
                f"({self.image_max_pixels}); lower it"
            )
        return self
