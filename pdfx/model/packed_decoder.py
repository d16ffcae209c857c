"""The decoder's door: where B padded inputs become a row without padding, and the layer where that row becomes K rows.

Hooks leave every family's own forward as it is, and sharded parameters to the modules that own them. They are set once
and keep nothing: what belongs to one call is in its packing, which comes to the decoder in a context variable and goes
from there to every layer as an argument. So threads do not meet, and a layer that is recomputed in the backward pass,
in whatever thread, finds what it had.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch

from .families import Decoder
from .packing import Packing

CALL: ContextVar[tuple[Packing, str] | None] = ContextVar("the decoder's call in this thread", default=None)


def attach_hooks(decoder: Decoder, first_prefix_layer: int) -> None:
    """Set the hooks by which a decoder and its layers follow ``packed_decoder``.

    Args:
        first_prefix_layer: number of the lowest layer with a prefix.
    """
    decoder.register_forward_pre_hook(_enter, with_kwargs=True)
    for number, layer in enumerate(decoder.layers[first_prefix_layer:]):
        layer.register_forward_pre_hook(partial(_fan_out, number == 0), with_kwargs=True)


@contextmanager
def packed_decoder(
    attention_mask: torch.Tensor, paths: torch.Tensor, share_trunk: bool, attention: str
) -> Iterator[Packing]:
    """Within the block the decoder, called by this thread, reads padded inputs of B sequences and gives states ``[1,
    K*N, D]``, path by path.

    Layers below the first one that holds a prefix are the same function for all paths, so they can run on one row (the
    shared trunk, ours); that layer and those above it run on K rows.

    Args:
        attention_mask: ``[B, T]``.
        paths: int64 ``[K]``.
        share_trunk: whether K rows are made at the first layer with a prefix, and not at once.
        attention: setting of ``attention.prefix_attention``.
    """
    packing = Packing(attention_mask, paths)
    call = CALL.set((packing.one_path() if share_trunk and len(paths) > 1 else packing, attention))
    try:
        yield packing
    finally:
        CALL.reset(call)


def _enter(module, args, kwargs):
    call = CALL.get()
    if call is None:
        return None
    packing, attention = call
    kwargs = dict(kwargs)
    kwargs["inputs_embeds"] = packing.pack(kwargs["inputs_embeds"])
    kwargs["position_ids"] = packing.pack_positions(kwargs.get("position_ids"))
    kwargs["attention_mask"] = None
    return args, {**kwargs, "packing": packing, "attention": attention}


def _fan_out(first: bool, module, args, kwargs):
    """Turn one row into K for the layers above the shared trunk."""
    packing = kwargs.get("packing") and kwargs["packing"].whole
    if packing is None:
        return None
    if packing.position_embeddings is None:
        packing.position_embeddings = tuple(packing.repeat(table) for table in kwargs["position_embeddings"])
    if first:
        args = (packing.repeat(args[0]), *args[1:])
    return args, {**kwargs, "position_embeddings": packing.position_embeddings, "packing": packing}
