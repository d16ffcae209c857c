"""The padding-free batch: at the decoder's door B padded inputs become N tokens in a row, and at some layer K rows.

Its index arithmetic is built once per batch; the layers only gather. Hooks leave every family's own forward as it is,
and sharded parameters to the modules that own them. They are set once and keep nothing: what belongs to one call is in
its packing, which comes to the decoder in a context variable and goes from there to every layer as an argument. So
threads do not meet, and a layer that is recomputed in the backward pass, in whatever thread, finds what it had.

Legend: B sequences, K paths, T padded length, N tokens without padding, P prefix length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from .families import Decoder

MAX_WASTE = 0.25
"""A bucket's sequences are at least (1 - MAX_WASTE) of its longest one, so less than that share is padding."""


@dataclass
class Bucket:
    """Sequences of similar length that attend together.

    Attributes:
        index: int64 ``[n, L]``, packed token of each place; places behind a sequence's end repeat token 0 and are
            dropped afterwards.
    """

    index: torch.Tensor

    def mask(self, prefix_length: int, dtype: torch.dtype) -> torch.Tensor:
        """``[L, P + L]`` to add to scores: 0 at every prefix key and the tokens up to the own place, -inf elsewhere.

        Places behind a sequence's end lie after all its tokens, so that causality alone hides them.
        """
        length = self.index.shape[1]
        return torch.full((length, prefix_length + length), -torch.inf, dtype=dtype, device=self.index.device).triu(
            prefix_length + 1
        )


class Packing:
    """Where the tokens of B padded sequences stand in a row without padding.

    Args:
        attention_mask: ``[B, T]``, non-zero at real tokens; padding may be on either side.
        paths: int64 ``[K]``, numbers of the prefixes that the K copies of the row read.
        whole: the packing of all paths, if this one is of one path for the layers that all share.

    Attributes:
        position_embeddings: the layers' rotary tables for K rows, kept by the first layer above a shared trunk.

    Raises:
        ValueError: a sequence has no token at all.
    """

    def __init__(self, attention_mask: torch.Tensor, paths: torch.Tensor, whole: "Packing | None" = None):
        keep = attention_mask.bool()
        self.attention_mask = attention_mask
        self.paths = paths
        self.whole = whole
        self.position_embeddings: tuple[torch.Tensor, ...] | None = None
        self.token_index = keep.flatten().nonzero().squeeze(1)
        self.lengths: list[int] = keep.sum(1).tolist()
        if min(self.lengths) == 0:
            raise ValueError(
                f"Sequence {self.lengths.index(0)} of the batch has no token; every input needs at least one."
            )
        self.device = attention_mask.device
        lengths = torch.tensor(self.lengths, device=self.device)
        self.ends = lengths.cumsum(0) - 1
        self.starts = self.ends + 1 - lengths
        self.positions = (keep.long().cumsum(1) - 1).flatten()[self.token_index]
        self._kept: dict[tuple, torch.Tensor] = {}

    @property
    def tokens(self) -> int:
        """N, tokens of one path."""
        return len(self.token_index)

    @property
    def uniform(self) -> bool:
        """Whether all sequences have the same length, so that nothing is to be gathered."""
        return min(self.lengths) == max(self.lengths)

    def one_path(self) -> "Packing":
        """The same row once, for layers that all paths share."""
        return Packing(self.attention_mask, self.paths[:1], whole=self)

    def repeat(self, row: torch.Tensor) -> torch.Tensor:
        """``[..., N, D]`` of one path to ``[..., K*N, D]``, path by path."""
        return torch.cat([row] * len(self.paths), dim=-2)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` to ``[1, K*N, D]``, path by path."""
        row = states.flatten(0, 1).index_select(0, self.token_index)
        return row.expand(len(self.paths), *row.shape).reshape(1, -1, row.shape[-1])

    def pack_positions(self, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Positions ``[1, K*N]``, or ``[3, 1, K*N]`` if the family has its own (multimodal rotary positions).

        Without any, positions count the real tokens, so that padding never shifts them.
        """
        count = len(self.paths)
        if position_ids is None:
            return self.positions.repeat(count)[None]
        axes = position_ids.shape[0]
        return position_ids.flatten(1).index_select(1, self.token_index).repeat(1, count).view(axes, 1, -1)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Sequences grouped by length, longest first, each with a padding share below ``MAX_WASTE``."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        groups: list[list[int]] = []
        for i in order:
            if groups and self.lengths[i] >= (1 - MAX_WASTE) * self.lengths[groups[-1][0]]:
                groups[-1].append(i)
            else:
                groups.append([i])
        return [self._bucket(group) for group in groups]

    def _bucket(self, group: list[int]) -> Bucket:
        places = torch.arange(self.lengths[group[0]], device=self.device)
        members = torch.tensor(group, device=self.device)
        index = self.starts[members, None] + places
        return Bucket(torch.where(index <= self.ends[members, None], index, 0))

    @cached_property
    def restore(self) -> torch.Tensor:
        """int64 ``[N]``: the place of each packed token among all buckets' places laid one after another."""
        places = torch.empty(self.tokens, dtype=torch.long, device=self.device)
        offset = 0
        for bucket in self.buckets:
            flat = bucket.index.flatten()
            # A repeated token 0 must not overwrite the true one: real places increase along a row.
            real = torch.ones_like(bucket.index, dtype=torch.bool)
            real[:, 1:] = bucket.index[:, 1:] > bucket.index[:, :-1]
            places[flat[real.flatten()]] = offset + real.flatten().nonzero().squeeze(1)
            offset += flat.numel()
        return places

    def bucket_mask(self, number: int, prefix_length: int, dtype: torch.dtype) -> torch.Tensor:
        """The mask of one bucket, kept for the other layers of the batch."""
        return self._keep(
            ("mask", number, prefix_length, dtype), lambda: self.buckets[number].mask(prefix_length, dtype)
        )

    @cached_property
    def cumulative_lengths(self) -> torch.Tensor:
        """int32 ``[K*B + 1]``, borders of the K*B query segments (the varlen kernel's ``cu_seqlens_q``)."""
        lengths = torch.tensor([0, *self.lengths * len(self.paths)], device=self.device)
        return lengths.cumsum(0).to(torch.int32)

    def cumulative_key_lengths(self, prefix_length: int) -> torch.Tensor:
        """int32 ``[K*B + 1]``, borders of the key segments, each a prefix and then the tokens (``cu_seqlens_k``)."""
        steps = torch.arange(len(self.cumulative_lengths), device=self.device, dtype=torch.int32)
        return self.cumulative_lengths + steps * prefix_length

    def key_index(self, prefix_length: int) -> torch.Tensor:
        """int64 ``[K*(B*P + N)]``: order that interleaves prefixes with tokens, kept for the other layers of the batch.

        It picks from the K*P prefix rows followed by the K*N token rows: for each path and sequence, that path's P
        prefix rows and then the sequence's tokens.
        """
        return self._keep(("keys", prefix_length), lambda: self._key_index(prefix_length))

    def _keep(self, name: tuple, build) -> torch.Tensor:
        if name not in self._kept:
            self._kept[name] = build()
        return self._kept[name]

    def _key_index(self, prefix_length: int) -> torch.Tensor:
        paths, sequences = len(self.paths), len(self.lengths)
        index = torch.empty(paths * (sequences * prefix_length + self.tokens), dtype=torch.long, device=self.device)
        borders = self.cumulative_key_lengths(prefix_length)[:-1].long()
        prefix_places = borders[:, None] + torch.arange(prefix_length, device=self.device)
        prefix_rows = (
            torch.arange(paths * prefix_length, device=self.device)
            .view(paths, 1, prefix_length)
            .expand(-1, sequences, -1)
        )
        index[prefix_places.flatten()] = prefix_rows.reshape(-1)
        taken = torch.zeros(len(index), dtype=torch.bool, device=self.device)
        taken[prefix_places.flatten()] = True
        index[~taken] = paths * prefix_length + torch.arange(paths * self.tokens, device=self.device)
        return index

    @property
    def padding_share(self) -> float:
        """Share of the buckets' places that are padding; the varlen kernel has none."""
        places = sum(bucket.index.numel() for bucket in self.buckets)
        return 1 - self.tokens / places


CALL: ContextVar[tuple[Packing, str] | None] = ContextVar("the decoder's call in this thread", default=None)


def chosen_paths(paths: list[int] | None, count: int) -> torch.Tensor:
    """Numbers of paths as int64 ``[k]``, all ``count`` if ``paths`` is None. Raises ValueError for an unknown one."""
    chosen = range(count) if paths is None else paths
    if not isinstance(chosen, (list, tuple, range)) or not chosen or not all(path in range(count) for path in chosen):
        raise ValueError(f"Paths must be a list of numbers among 0 to {count - 1}, not {paths!r}.")
    return torch.tensor(list(chosen))


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
