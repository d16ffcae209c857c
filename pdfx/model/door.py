"""The decoder's door: where B padded inputs become a row without padding, and the layer where that row becomes K rows.

Hooks leave every family's own forward as it is, and sharded parameters to the modules that own them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from .packing import Packing


@contextmanager
def packed_decoder(decoder: nn.Module, attention_mask: torch.Tensor, paths: torch.Tensor, first_prefix_layer: int, attention: str) -> Iterator[Packing]:
    """Within the block the decoder reads padded inputs of B sequences and gives states ``[1, K*N, D]``, path by path.

    Layers below the first one that holds a prefix are the same function for all paths, so they run on one row (the shared trunk, ours); that layer and
    those above it run on K rows.

    Args:
        attention_mask: ``[B, T]``.
        paths: int64 ``[K]``.
        first_prefix_layer: number of the lowest layer with a prefix; 0 makes K rows at once.
        attention: setting of ``attention.prefix_attention``.
    """
    packing = Packing(attention_mask, paths)
    shared = first_prefix_layer > 0 and len(paths) > 1
    trunk = packing.one_path() if shared else packing
    hooks = [decoder.register_forward_pre_hook(partial(_enter, trunk, attention), with_kwargs=True)]
    if shared:
        fan_out = FanOut(packing)
        for number, layer in enumerate(decoder.layers[first_prefix_layer:]):
            hooks.append(layer.register_forward_pre_hook(partial(fan_out, number == 0), with_kwargs=True))
    try:
        yield packing
    finally:
        for hook in hooks:
            hook.remove()


def _enter(packing: Packing, attention: str, module, args, kwargs):
    kwargs = dict(kwargs)
    kwargs["inputs_embeds"] = packing.pack(kwargs["inputs_embeds"])
    kwargs["position_ids"] = packing.pack_positions(kwargs.get("position_ids"))
    kwargs["attention_mask"] = None
    return args, {**kwargs, "packing": packing, "attention": attention}


class FanOut:
    """Turns one row into K for the layers above the shared trunk. Called as a pre-forward hook, again whenever a checkpointed layer is recomputed."""

    def __init__(self, packing: Packing):
        self.packing = packing
        self.position_embeddings = None

    def __call__(self, first: bool, module, args, kwargs):
        if self.position_embeddings is None:
            self.position_embeddings = tuple(self.packing.repeat(table) for table in kwargs["position_embeddings"])
        if first:
            args = (self.packing.repeat(args[0]), *args[1:])
        return args, {**kwargs, "position_embeddings": self.position_embeddings, "packing": self.packing}
