"""Prefix attention against plain computations that share no code with it."""

import pytest
import torch
from tiny_models import FAMILIES, items
from transformers import AttentionInterface, AutoModel

from pdfx.model import attention as attention_module
from pdfx.model.attention import bucketed_attention, with_prefixes
from pdfx.model.packing import MAX_WASTE, Packing


@pytest.mark.parametrize("kind", ["text", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_prefixes_the_embedding_is_the_plain_backbones_last_token(embedder_of, backbones, family, kind):
    embedder = embedder_of(family, paths=1, prefix_length=0)
    plain = AutoModel.from_pretrained(backbones[family]).eval()
    batch = items(kind, 4)
    with torch.no_grad():
        ours = embedder(embedder.processor(batch, ["query"] * 4)[0]).paths[:, 0]
        for item, embedding in zip(batch, ours, strict=True):
            state = plain(**embedder.processor([item], ["query"])[0], use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(embedding, state / state.norm(), atol=1e-5, rtol=0)


def dense_prefix_attention(module, query, key, value, attention_mask, scaling=None, packing=None, **kwargs):
    """Softmax over a full score matrix for one sequence and one path: prefix keys first, then the tokens up to the own
    one."""
    (path,) = packing.paths.tolist()
    groups = query.shape[1] // key.shape[1]
    prefix_key, prefix_value = (getattr(module.prefix, name)[path].transpose(0, 1) for name in ("key", "value"))
    key = torch.cat((prefix_key, key[0]), dim=1).repeat_interleave(groups, dim=0)
    value = torch.cat((prefix_value, value[0]), dim=1).repeat_interleave(groups, dim=0)
    scores = torch.einsum("hqd,hkd->hqk", query[0], key) * scaling
    prefix_length = prefix_key.shape[1]
    for place in range(query.shape[2]):
        scores[:, place, prefix_length + place + 1 :] = -torch.inf
    return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), value)[None], None


@pytest.mark.parametrize("kind", ["text", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_attention_equals_a_dense_softmax_sequence_by_sequence(embedder_of, family, kind):
    embedder = embedder_of(family, dtype=torch.float64)
    batch = items(kind, 4)
    AttentionInterface.register("dense_reference", dense_prefix_attention)
    with torch.no_grad():
        ours = embedder(embedder.processor(batch, ["query"] * 4)[0]).paths
        embedder.decoder.config._attn_implementation = "dense_reference"
        attention_module.AttentionMaskInterface.register("dense_reference", attention_module.no_mask)
        for i, item in enumerate(batch):
            for path in range(3):
                reference = embedder(embedder.processor([item], ["query"])[0], paths=[path]).paths[0, 0]
                # float64; the loosest step is the rotary embedding, which transformers computes in float32 on both
                # sides alike.
                torch.testing.assert_close(ours[i, path], reference, atol=1e-10, rtol=0)


def varlen_kernel(query, key, value, query_borders, key_borders, scaling):
    """What flash-attn's varlen kernel documents: per segment, causal with the last query aligned to the last key
    (bottom right)."""
    output = torch.empty_like(query)
    groups = query.shape[1] // key.shape[1]
    for (q0, q1), (k0, k1) in zip(
        zip(query_borders, query_borders[1:], strict=False),
        zip(key_borders, key_borders[1:], strict=False),
        strict=True,
    ):
        k, v = (tensor[k0:k1].repeat_interleave(groups, dim=1) for tensor in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], k) * scaling
        queries, keys = q1 - q0, k1 - k0
        visible = torch.arange(keys)[None] <= torch.arange(queries)[:, None] + keys - queries
        output[q0:q1] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)
    return output


@pytest.mark.parametrize(
    "borders",
    [[(0, 9), (2, 9), (0, 1), (8, 9), (0, 5)], [(0, 9), (0, 9)], [(2, 9)]],
    ids=["mixed", "one length", "one sequence"],
)
@pytest.mark.parametrize("prefix_length", [0, 1, 4])
def test_the_varlen_index_arithmetic_equals_bucketed_attention(prefix_length, borders):
    torch.manual_seed(0)
    mask = torch.zeros(len(borders), 9, dtype=torch.long)
    for row, (start, end) in enumerate(borders):
        mask[row, start:end] = 1
    packing = Packing(mask, torch.tensor([2, 0, 1]))
    rows = 3 * packing.tokens
    query = torch.randn(4, rows, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, rows, 8, dtype=torch.float64)
    prefixes = torch.randn(2, 3, prefix_length, 2, 8, dtype=torch.float64) if prefix_length else (None, None)
    bucketed = bucketed_attention(query, key, value, *prefixes, packing, 0.3, 0.0)
    keys, values, borders, longest = with_prefixes(key.transpose(0, 1), value.transpose(0, 1), *prefixes, packing)
    varlen = varlen_kernel(
        query.transpose(0, 1), keys, values, packing.cumulative_lengths.tolist(), borders.tolist(), 0.3
    )
    torch.testing.assert_close(varlen, bucketed, atol=1e-12, rtol=0)
    assert longest == max(packing.lengths) + prefix_length == (borders[1:] - borders[:-1]).max()


def test_buckets_hold_every_token_once_and_their_padding_stays_below_the_bound():
    torch.manual_seed(0)
    lengths = torch.randint(1, 200, (64,))
    packing = Packing((torch.arange(200) < lengths[:, None]).long(), torch.tensor([0]))
    assert sorted(packing.restore.tolist()) == sorted(set(packing.restore.tolist()))
    places = torch.cat([bucket.index.flatten() for bucket in packing.buckets])
    torch.testing.assert_close(places[packing.restore], torch.arange(packing.tokens))
    assert packing.padding_share < MAX_WASTE


def test_an_input_without_a_token_is_refused_by_its_place():
    with pytest.raises(ValueError, match="Sequence 1 of the batch has no token"):
        Packing(torch.tensor([[1, 1], [0, 0]]), torch.tensor([0]))


def test_demanding_flash_attention_where_it_cannot_run_says_what_to_do(embedder_of):
    embedder = embedder_of("llava_next", attention="flash")
    with pytest.raises(ValueError, match="needs the flash-attn package"):
        embedder(embedder.processor(items("text", 1), ["query"])[0])
