"""The registered attention function: a packed row attends to its paths' prefixes and, causally, within sequences."""

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available

from .packing import Packing
from .prefixes import PREFIX_NAME

# An export's copy of this module registers itself beside the library's, so that two versions can live in one process.
ATTENTION_NAME = __name__.replace(".", "_")


def prefix_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    *,
    packing: Packing,
    attention="auto",
    **kwargs,
):
    """Attention of one decoder layer over a packed row (the form transformers' attention interface asks for).

    Args:
        module: the layer's attention module; its ``prefix`` child, if any, gives the prefix.
        query: ``[1, heads, K*N, head_dim]``; key, value: ``[1, kv_heads, K*N, head_dim]``, rotated already.
        packing: borders and buckets of the row.
        attention: ``flash``, ``sdpa``, or ``auto`` (flash-attn if it is installed and the tensors suit it).

    Returns:
        ``[1, K*N, heads, head_dim]`` and no weights.
    """
    window = kwargs.get("sliding_window")
    if window is not None and window < max(packing.lengths):
        raise ValueError(
            f"The decoder's sliding window of {window} tokens is shorter than an input of {max(packing.lengths)}; "
            "shorten the inputs."
        )
    prefix = getattr(module, PREFIX_NAME, None)
    prefix_key, prefix_value = prefix(packing.paths) if prefix is not None else (None, None)
    attend = flash_attention if uses_flash(attention, query) else bucketed_attention
    output = attend(query[0], key[0], value[0], prefix_key, prefix_value, packing, scaling, dropout)
    return output[None], None


def uses_flash(attention: str, query: torch.Tensor) -> bool:
    """Whether the varlen kernel takes these tensors. Raises ValueError if it was demanded and cannot."""
    suits = is_flash_attn_2_available() and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if attention == "flash" and not suits:
        raise ValueError(
            "attention is 'flash', which needs the flash-attn package, a CUDA device and bf16; set it to 'auto', or "
            "install pdfx[flash]."
        )
    return suits and attention != "sdpa"


def bucketed_attention(query, key, value, prefix_key, prefix_value, packing: Packing, scaling, dropout):
    """Exact attention by PyTorch's own kernel, on sequences grouped by length.

    Shapes: query ``[heads, K*N, head_dim]``, key and value ``[kv_heads, K*N, head_dim]``, prefixes ``[K, P, kv_heads,
    head_dim]`` or None; returns ``[K*N, heads, head_dim]``.
    """
    count = len(packing.paths)
    rows = [tensor.transpose(0, 1).unflatten(0, (count, packing.tokens)) for tensor in (query, key, value)]
    prefix_length = 0 if prefix_key is None else prefix_key.shape[1]
    outputs = []
    for number, bucket in enumerate(packing.buckets):
        sequences, length = bucket.index.shape
        # Sequences of one length stand in their bucket as they stand in the row.
        picked = rows if packing.uniform else (row.index_select(1, bucket.index.flatten()) for row in rows)
        q, k, v = (row.unflatten(1, (sequences, length)) for row in picked)
        if prefix_length:
            k = torch.cat((prefix_key[:, None].expand(-1, sequences, -1, -1, -1).to(k.dtype), k), dim=2)
            v = torch.cat((prefix_value[:, None].expand(-1, sequences, -1, -1, -1).to(v.dtype), v), dim=2)
        q, k, v = (tensor.flatten(0, 1).transpose(1, 2) for tensor in (q, k, v))
        # Without a prefix the kernel's own causal form does, which skips what is not seen.
        mask = packing.bucket_mask(number, prefix_length, q.dtype) if prefix_length else None
        settings = {"dropout_p": dropout, "scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
        output = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **settings)
        outputs.append(output.transpose(1, 2).unflatten(0, (count, sequences)).flatten(1, 2))
    output = outputs[0] if packing.uniform else torch.cat(outputs, dim=1).index_select(1, packing.restore)
    return output.flatten(0, 1)


def flash_attention(query, key, value, prefix_key, prefix_value, packing: Packing, scaling, dropout):
    """flash-attn's varlen kernel; shapes as in ``bucketed_attention``.

    From 2.1 on its causal mask is aligned at the bottom right, so that every token sees its whole prefix.
    """
    from flash_attn import flash_attn_varlen_func

    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    key, value, borders, longest = with_prefixes(key, value, prefix_key, prefix_value, packing)
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=packing.cumulative_lengths,
        cu_seqlens_k=borders,
        max_seqlen_q=max(packing.lengths),
        max_seqlen_k=longest,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )


def with_prefixes(key, value, prefix_key, prefix_value, packing: Packing):
    """Keys and values ``[K*N, kv_heads, head_dim]`` with every segment's prefix, borders, and the longest segment."""
    longest = max(packing.lengths)
    if prefix_key is None:
        return key, value, packing.cumulative_lengths, longest
    length = prefix_key.shape[1]
    index = packing.key_index(length)
    key = torch.cat((prefix_key.flatten(0, 1).to(key.dtype), key)).index_select(0, index)
    value = torch.cat((prefix_value.flatten(0, 1).to(value.dtype), value)).index_select(0, index)
    return key, value, packing.cumulative_key_lengths(length), longest + length


def no_mask(*args, **kwargs) -> None:
    """The packed row needs no mask tensor: its borders are in the packing."""


AttentionInterface.register(ATTENTION_NAME, prefix_attention)
AttentionMaskInterface.register(ATTENTION_NAME, no_mask)
