"""Which tokens of an item stand for which part of its picture, and the picture with attention laid over it."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from pdfx.host.html import thumbnail
from pdfx.model import InputProcessor, ParallelEmbedder

SHOWN_PIXELS = 112
"""Longest side of a picture as it is shown."""
COLOURS = "coolwarm"
OPACITY = 0.65
SMALLEST_FACTOR = 2.0
"""Of the darkest colours, so that attention which is nearly even looks so."""


def picture_tokens(processor: InputProcessor, input_ids: Tensor) -> Tensor:
    """bool [N]: which tokens of an item stand for pictures. ``input_ids`` is int64 [N]."""
    return input_ids == processor.processor.image_token_id


def grids(model: ParallelEmbedder, inputs: dict[str, Tensor]) -> list[tuple[int, int, int]]:
    """Rows, columns, and columns that are no part of the picture at each row's end, of the token grids of an item's
    only picture, which follow one another and each cover the whole picture. Qwen2-VL has one; LLaVA-NeXT has one of
    the whole and one of its tiles, whose rows end with a token of their own."""
    config = model.config.backbone
    if "image_grid_thw" in inputs:
        _, height, width = inputs["image_grid_thw"][0].tolist()
        merged = config.vision_config.spatial_merge_size
        return [(height // merged, width // merged, 0)]
    size = inputs["image_sizes"][0].tolist()
    side = config.vision_config.image_size // config.vision_config.patch_size
    tiles = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    height, width = unpad_image(torch.empty(1, tiles[0] * side, tiles[1] * side), size).shape[1:]
    return [(side, side, 0), (height, width, 1)]


def maps(ratios: Tensor, places: list[tuple[int, int, int]]) -> list[np.ndarray] | None:
    """[rows, columns] of each grid, float32; None if the tokens are not as many as the grids have.

    Args:
        ratios: [tokens] of an item's only picture.
    """
    if len(ratios) != sum(rows * (columns + ends) for rows, columns, ends in places):
        return None
    found, start = [], 0
    for rows, columns, ends in places:
        end = start + rows * (columns + ends)
        found.append(ratios[start:end].view(rows, columns + ends)[:, :columns].float().numpy())
        start = end
    return found


def darkest_factor(layers: list[np.ndarray]) -> float:
    """The factor above or below even attention, 1, that the darkest colours stand for."""
    values = np.concatenate([layer.flatten() for layer in layers])
    return max(SMALLEST_FACTOR, float(values.max()))


def overlaid(image: Image.Image, layers: list[np.ndarray], factor: float) -> str:
    """The picture as a data URI, coloured by the mean of its maps in a logarithmic scale: blue at one over ``factor``
    and below, pale at 1, red at ``factor``."""
    small = image.convert("L").convert("RGB")
    small.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.LANCZOS)
    grown = [Image.fromarray(layer).resize(small.size, Image.Resampling.BILINEAR) for layer in layers]
    mean = np.mean([np.asarray(layer) for layer in grown], axis=0).clip(1 / factor, factor)
    colours = colormaps[COLOURS](0.5 + np.log(mean) / (2 * np.log(factor)))[..., :3]
    return thumbnail(Image.blend(small, Image.fromarray((colours * 255).astype(np.uint8)), OPACITY), SHOWN_PIXELS)
