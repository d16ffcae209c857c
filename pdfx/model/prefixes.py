"""Deep prefixes: learnable keys and values per path, owned by the attention module that reads them.

The form follows ParScale: un-rotated keys in the grouped number of heads, visible to every token, not shifting token
positions.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from .families import Decoder

PREFIX_NAME = "prefix"

Gathered = Callable[[list[nn.Parameter]], AbstractContextManager]
"""Makes sharded parameters whole within a block; ``nullcontext`` if nothing is sharded."""


class PathPrefix(nn.Module):
    """Keys and values of K paths for one decoder layer, each ``[K, P, kv_heads, head_dim]``."""

    def __init__(self, paths: int, length: int, kv_heads: int, head_dim: int, device=None, dtype=None):
        super().__init__()
        shape = (paths, length, kv_heads, head_dim)
        self.key = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def forward(self, paths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix keys and values of the chosen ``paths`` (int64 ``[k]``), each ``[k, P, kv_heads, head_dim]``.

        The selection is a copy: under ZeRO-3 the parameter itself is released when this returns.
        """
        return self.key.index_select(0, paths), self.value.index_select(0, paths)


def attach_prefixes(decoder: Decoder, config) -> None:
    """Give layers their ``PathPrefix``. Raises ValueError for a layer that does not exist."""
    layers = decoder.layers
    for number in config.prefix_layers if config.prefix_length else ():
        if not 0 <= number < len(layers):
            raise ValueError(f"prefix_layers names layer {number}, but the decoder has layers 0 to {len(layers) - 1}.")
        attention = layers[number].self_attn
        weight = attention.k_proj.weight
        text = decoder.config
        prefix = PathPrefix(
            config.paths,
            config.prefix_length,
            text.num_key_value_heads,
            attention.head_dim,
            weight.device,
            weight.dtype,
        )
        attention.register_module(PREFIX_NAME, prefix)


def prefixes_of(module: nn.Module) -> list[PathPrefix]:
    """All prefixes below a module, in the order of their layers."""
    return [child for child in module.modules() if isinstance(child, PathPrefix)]


@torch.no_grad()
def initialise_prefixes(decoder: Decoder, config, seed: int, gathered: Gathered = nullcontext) -> None:
    """Draw all prefixes apart from one another (ours).

    ``normal``: independent draws of standard deviation ``prefix_init_std``. ``tokens``: each layer's own keys and
    values of random vocabulary tokens, so that a prefix starts where the layer's real keys and values live.
    """
    for number in config.prefix_layers if config.prefix_length else ():
        layer = decoder.layers[number]
        prefix = layer.self_attn.get_submodule(PREFIX_NAME)
        if prefix.key.is_meta:
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if config.prefix_init == "tokens":
            sources = (
                decoder.get_input_embeddings(),
                layer.input_layernorm,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
            )
            with gathered([parameter for source in sources for parameter in source.parameters()]):
                embedding = sources[0].weight
                tokens = torch.randint(embedding.shape[0], (config.paths * config.prefix_length,), generator=generator)
                states = layer.input_layernorm(embedding[tokens.to(embedding.device)])
                prefix.key.copy_(layer.self_attn.k_proj(states).view_as(prefix.key))
                prefix.value.copy_(layer.self_attn.v_proj(states).view_as(prefix.value))
        else:
            for parameter in (prefix.key, prefix.value):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * config.prefix_init_std)
