"""What paths attend to, against a plain softmax, and where pictures lie among the tokens."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from tiny_exports import PATHS
from tiny_models import FAMILIES, items, picture, tiny_backbone
from transformers import AttentionInterface, AttentionMaskInterface

from pdfx.embedder.exports import load_export
from pdfx.evaluate.paths import attention as watching
from pdfx.evaluate.paths.attention import item_attention
from pdfx.evaluate.paths.picture_attention import darkest_factor, grids, maps, overlaid, picture_tokens
from pdfx.model import ParallelEmbedder

PREFIX = 5


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {family: tiny_backbone(family, root / family) for family in FAMILIES}


def embedder_on(backbone, **settings) -> ParallelEmbedder:
    settings = {"paths": PATHS, "prefix_length": PREFIX, "prefix_init_std": 0.5, **settings}
    return ParallelEmbedder.from_backbone(str(backbone), dtype=torch.float64, **settings).eval()


def plain_attention(kept: list):
    """An attention function that keeps the probabilities of every path, head and token, [K, heads, N, P + N], from a
    softmax over the keys that a token may see, one token after another."""

    def attend(module, query, key, value, mask, scaling=None, dropout=0.0, *, packing, **others):
        paths, count = len(packing.paths), packing.tokens
        q, k, v = (tensor[0].detach().numpy() for tensor in (query, key, value))
        groups = len(q) // len(k)
        prefix = getattr(module, "prefix", None)
        length = PREFIX if prefix is not None else 0
        found = np.zeros((paths, len(q), count, length + count))
        output = np.zeros((paths, count, len(q), q.shape[-1]))
        for path in range(paths):
            own = slice(path * count, (path + 1) * count)
            for head in range(len(q)):
                keys, values = k[head // groups, own], v[head // groups, own]
                if prefix is not None:
                    rows = [
                        getattr(prefix, name)[path, :, head // groups].detach().numpy() for name in ("key", "value")
                    ]
                    keys, values = np.concatenate([rows[0], keys]), np.concatenate([rows[1], values])
                for token in range(count):
                    scores = keys[: length + token + 1] @ q[head, own][token] * scaling
                    weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                    found[path, head, token, : len(weights)] = weights
                    output[path, token, head] = weights @ values[: len(weights)]
        kept.append(found)
        return torch.from_numpy(output).flatten(0, 1)[None], None

    return attend


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_a_plain_softmax_over_prefix_and_tokens(backbones, family, pooling, monkeypatch):
    # Fewer tokens than the item has, so that its attention comes in parts.
    monkeypatch.setattr(watching, "TILE", 7)
    embedder = embedder_on(backbones[family], pooling=pooling)
    inputs, _ = embedder.processor(items("image", 1), ["query"])
    before = embedder(inputs).paths
    found = item_attention(embedder, inputs)
    torch.testing.assert_close(embedder(inputs).paths, before, rtol=0, atol=0)

    kept = []
    AttentionInterface.register("plain_reference", plain_attention(kept))
    AttentionMaskInterface.register("plain_reference", lambda *args, **kwargs: None)
    embedder.decoder.config._attn_implementation = "plain_reference"
    with torch.no_grad():
        # So these are the probabilities that the model works with.
        torch.testing.assert_close(embedder(inputs).paths, before, rtol=0, atol=1e-10)
    mean = np.mean(kept, axis=2)
    assert mean.shape == (2, PATHS, inputs["input_ids"].shape[1], PREFIX + inputs["input_ids"].shape[1])
    mass = mean[..., :PREFIX].sum(-1)
    pooled = mean[:, :, -1] if pooling == "last" else mean.mean(2)
    np.testing.assert_allclose(found.prefix.numpy(), mass.mean(2), atol=1e-10)
    np.testing.assert_allclose(found.prefix_of_embedding.numpy(), pooled[..., :PREFIX].sum(-1), atol=1e-10)
    np.testing.assert_allclose(found.tokens.numpy(), pooled[..., PREFIX:].mean(0), atol=1e-10)


@pytest.mark.parametrize("layers", [[0, 1], [0]])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_keys_of_zero_get_even_attention(backbones, pooling, layers):
    embedder = embedder_on(backbones["llava_next"], pooling=pooling, prefix_layers=layers)
    with torch.no_grad():
        for layer in embedder.decoder.layers:
            layer.self_attn.k_proj.weight.zero_()
            if hasattr(layer.self_attn, "prefix"):
                layer.self_attn.prefix.key.zero_()
    found = item_attention(embedder, embedder.processor(items("text", 1), ["query"])[0])
    torch.testing.assert_close(found.prefix.mean(0), torch.full((PATHS,), found.even_prefix, dtype=torch.float64))
    torch.testing.assert_close(found.tokens, found.even.expand_as(found.tokens))


def test_layers_that_all_paths_share_are_left_out_and_no_prefix_gets_nothing(backbones):
    inputs = embedder_on(backbones["qwen2_vl"]).processor(items("text", 1), ["query"])[0]
    found = item_attention(embedder_on(backbones["qwen2_vl"], prefix_layers=[1]), inputs)
    assert found.prefix.shape == (1, PATHS) and found.first_layer == 1
    found = item_attention(embedder_on(backbones["qwen2_vl"], paths=1, prefix_length=0), inputs)
    assert not found.prefix.any() and found.even_prefix == 0
    assert float(found.tokens.sum()) == pytest.approx(1) == float(found.even.sum())


@pytest.mark.process
def test_exports_opened_by_their_own_code_show_the_same_attention(export):
    # What AutoModel does with trust_remote_code, unless pdfx has put its own classes in the place of the export's.
    script = """
import json, sys
from transformers.dynamic_module_utils import get_class_from_dynamic_module
model = get_class_from_dynamic_module("modeling.ParallelEmbedder", sys.argv[1]).from_pretrained(sys.argv[1]).eval()
from pdfx.evaluate.paths.attention import item_attention
found = item_attention(model, model.processor([{"text": "two green circles", "images": []}], ["query"])[0])
print(json.dumps([type(model).__module__, found.prefix.tolist(), found.tokens.tolist()]))
"""
    done = warm.run([sys.executable, "-c", script, str(export)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    module, prefix, tokens = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    model = load_export(export)
    found = item_attention(model, model.processor([{"text": "two green circles", "images": []}], ["query"])[0])
    assert prefix == found.prefix.tolist() and tokens == found.tokens.tolist()


@pytest.mark.parametrize("size", [(56, 42), (28, 56), (80, 30), (30, 90)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_has_as_many_tokens_as_its_grids_have_places(backbones, family, size):
    embedder = embedder_on(backbones[family])
    inputs, _ = embedder.processor([{"text": "a", "images": [picture(1, size)]}], ["query"])
    own = picture_tokens(embedder.processor, inputs["input_ids"][0])
    found = maps(torch.arange(int(own.sum())), grids(embedder, inputs))
    assert found is not None
    wider = [layer.shape[1] >= layer.shape[0] for layer in found[-1:]]
    assert wider == [size[0] >= size[1]]


def test_maps_are_cut_from_the_tokens_row_by_row_without_the_rows_ends():
    found = maps(torch.arange(4 + 2 * 4), [(2, 2, 0), (2, 3, 1)])
    assert [layer.tolist() for layer in found] == [[[0, 1], [2, 3]], [[4, 5, 6], [8, 9, 10]]]
    assert maps(torch.arange(5), [(2, 2, 0)]) is None


def test_a_picture_is_red_where_attention_is_more_than_even_and_blue_where_it_is_less():
    layer = np.array([[4.0, 0.25], [1.0, 1.0]], dtype=np.float32)
    assert darkest_factor([layer]) == 4 and darkest_factor([layer / 4]) == 2
    uri = overlaid(Image.new("RGB", (80, 80), "grey"), [layer], 4.0)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))).convert("RGB")).astype(int)
    red, blue, even = shown[5, 5], shown[5, -5], shown[-5, 5]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50 and np.ptp(even) < 10 and even.mean() > 150
