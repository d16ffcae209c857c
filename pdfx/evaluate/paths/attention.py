"""What the paths of an exported model attend to: their prefix, and the tokens of a picture.

Attention probabilities are computed beside the model's own attention, from the queries and keys that it gets, so they
are those of any kernel; and the code that an export brings does not need to know of it.

Legend: K paths, L layers that run once per path, N tokens of an item, P prefix length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pdfx.model import ParallelEmbedder
from pdfx.model.fusion import at_least_float32
from pdfx.model.prefixes import PREFIX_NAME

WATCHED = "pdfx_watched"
TILE = 256
"""Tokens whose attention is held at a time."""

Observe = Callable[[Tensor, Tensor, Tensor | None, float], None]
"""Called for each layer with queries [K, heads, N, d], keys [K, kv_heads, N, d], prefix keys [K, kv_heads, P, d] or
None, and the scale of the scores."""


@dataclass(frozen=True)
class ItemAttention:
    """Attention of one item, mean over heads. The embedding's tokens are those that are pooled: the last one, or all.

    Attributes:
        prefix: float64 [L, K], mass on the prefix, mean over all tokens.
        prefix_of_embedding: float64 [L, K], the same of the embedding's tokens.
        tokens: float64 [K, N], mass that the embedding's tokens give to each token, mean over layers.
        even: float64 [N], that mass if all keys that a token sees, prefix and tokens, got the same.
        even_prefix: mass on the prefix if they did, mean over all tokens.
        first_layer: number of the first of the L layers.
    """

    prefix: Tensor
    prefix_of_embedding: Tensor
    tokens: Tensor
    even: Tensor
    even_prefix: float
    first_layer: int


@contextmanager
def watched(model: ParallelEmbedder, observe: Observe) -> Iterator[None]:
    """Within the block every layer of the model that runs once per path shows its queries and keys. Only one item at a
    time may be embedded."""
    config = model.decoder.config
    own = config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS[own]

    def show(module, query, key, value, attention_mask, scaling=None, dropout=0.0, *, packing, **others):
        if packing.whole is None:
            query_of, key_of = (
                tensor[0].unflatten(1, (len(packing.paths), packing.tokens)).transpose(0, 1) for tensor in (query, key)
            )
            prefix = getattr(module, PREFIX_NAME, None)
            prefix_key = None if prefix is None else prefix(packing.paths)[0].transpose(1, 2)
            observe(query_of, key_of, prefix_key, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return attend(module, query, key, value, attention_mask, scaling, dropout, packing=packing, **others)

    AttentionInterface.register(WATCHED, show)
    AttentionMaskInterface.register(WATCHED, ALL_MASK_ATTENTION_FUNCTIONS[own])
    config._attn_implementation = WATCHED
    try:
        yield
    finally:
        config._attn_implementation = own


def probabilities(query: Tensor, key: Tensor, prefix_key: Tensor | None, scale: float, rows: slice) -> Tensor:
    """[K, heads, rows, P + N]: the softmax over the prefix and, causally, the tokens, of some rows. Shapes as of
    ``Observe``."""
    length = 0 if prefix_key is None else prefix_key.shape[2]
    whole = key if prefix_key is None else torch.cat([prefix_key.to(key.dtype), key], dim=2)
    whole = whole.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (at_least_float32(query[:, :, rows]) @ at_least_float32(whole).transpose(2, 3)) * scale
    places = torch.arange(query.shape[2], device=query.device)
    hidden = places[None, :] > places[rows, None]
    scores[..., length:] = scores[..., length:].masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


@torch.no_grad()
def item_attention(model: ParallelEmbedder, inputs: dict[str, Tensor]) -> ItemAttention:
    """Of what the processor makes of a single item, on the model's device."""
    layers: list[tuple[Tensor, ...]] = []
    lengths: list[int] = []
    last_alone = model.config.pooling == "last"

    def observe(query: Tensor, key: Tensor, prefix_key: Tensor | None, scale: float) -> None:
        length = 0 if prefix_key is None else prefix_key.shape[2]
        mass, received = [], []
        for start in range(0, query.shape[2], TILE):
            found = probabilities(query, key, prefix_key, scale, slice(start, start + TILE)).mean(1).double()
            mass.append(found[..., :length].sum(-1))
            received.append((found[:, -1] if last_alone else found.sum(1) / query.shape[2])[:, length:])
        masses = torch.cat(mass, dim=1)
        tokens = received[-1] if last_alone else torch.stack(received).sum(0)
        of_embedding = masses[:, -1] if last_alone else masses.mean(1)
        lengths.append(length)
        layers.append((masses.mean(1).cpu(), of_embedding.cpu(), tokens.cpu()))

    with watched(model, observe):
        model(inputs)
    prefix, of_embedding, tokens = (torch.stack(found) for found in zip(*layers, strict=True))
    of_layers = torch.tensor(lengths, dtype=torch.float64)[:, None]
    seen = of_layers + torch.arange(1, tokens.shape[-1] + 1)
    evens = (1 / seen[:, -1:]).expand_as(seen) if last_alone else (1 / seen).flip(1).cumsum(1).flip(1) / seen.shape[1]
    first_layer = len(model.decoder.layers) - len(layers)
    return ItemAttention(
        prefix, of_embedding, tokens.mean(0), evens.mean(0), float((of_layers / seen).mean()), first_layer
    )
