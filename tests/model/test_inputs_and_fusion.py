"""Prompts, bounds on texts and images, and the fusion of paths."""

import pytest
import torch
from tiny_models import FAMILIES, items, picture

from pdfx.model import ParallelEmbedderConfig
from pdfx.model.fusion import Fusion


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_is_cut_at_the_text_and_counted_while_its_images_stay_whole(embedder_of, family):
    embedder = embedder_of(family, inputs={"max_text_tokens": 6})
    short = {"text": "red", "images": [picture(1)]}
    long = {"text": "red green blue " * 50, "images": [picture(1)]}
    inputs, truncated = embedder.processor([short, long], ["query", "query"])
    image = embedder.backbone.config.image_token_id
    tokens = [(row == image).sum() for row in inputs["input_ids"]]
    assert truncated == 1 and tokens[0] == tokens[1] > 0
    end = embedder.processor.tokenizer.eos_token_id
    last = inputs["input_ids"][1][inputs["attention_mask"][1].bool()][-1]
    assert last == end
    instructionless = inputs["attention_mask"][1].sum() - tokens[1]
    assert instructionless <= 6 + 5


@pytest.mark.parametrize("family", FAMILIES)
def test_strings_with_a_meaning_in_the_prompt_cannot_enter_through_a_text(embedder_of, family):
    embedder = embedder_of(family)
    attack = "".join(embedder.family.reserved) * 2
    inputs, _ = embedder.processor([{"text": attack, "images": []}], ["query"])
    assert not (inputs["input_ids"] == embedder.backbone.config.image_token_id).any()
    with torch.no_grad():
        assert torch.isfinite(embedder(inputs).paths).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_side_has_its_own_instruction(embedder_of, family):
    embedder = embedder_of(family, inputs={"query_instruction": "Find the text: ", "target_instruction": ""})
    item = {"text": "two green circles", "images": []}
    query, target = (embedder.embed([item], side).paths for side in ("query", "target"))
    literal = embedder.embed([{"text": "Find the text: two green circles"}], "target").paths
    torch.testing.assert_close(query, literal)
    assert (query - target).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "setting"),
    [("qwen2_vl", {"image_grid_pinpoints": [[28, 28]]}), ("llava_next", {"image_max_pixels": 784})],
)
def test_an_image_setting_that_the_family_ignores_is_an_error(embedder_of, family, setting):
    with pytest.raises(ValueError, match="has no effect on a"):
        embedder_of(family, inputs=setting)


def test_image_bounds_change_the_number_of_image_tokens(embedder_of):
    large = [{"text": "", "images": [picture(0, (112, 112))]}]
    counts = {}
    for pixels in (28 * 28, 4 * 28 * 28):
        embedder = embedder_of("qwen2_vl", inputs={"image_min_pixels": 28 * 28, "image_max_pixels": pixels})
        counts[pixels] = int(
            (embedder.processor(large, ["query"])[0]["input_ids"] == embedder.backbone.config.image_token_id).sum()
        )
    assert counts == {28 * 28: 1, 4 * 28 * 28: 4}
    for pinpoints, tiles in (([[28, 28]], 1), ([[56, 56]], 4)):
        embedder = embedder_of("llava_next", inputs={"image_grid_pinpoints": pinpoints})
        inputs, _ = embedder.processor(large, ["query"])
        assert inputs["pixel_values"].shape[1] == 1 + tiles
        embedder.embed(large)


@pytest.mark.parametrize("family", FAMILIES)
def test_selected_items_embed_as_if_they_alone_had_been_processed(embedder_of, family):
    embedder = embedder_of(family)
    batch = items("mixed", 6)
    images = [len(item["images"]) for item in batch]
    inputs, _ = embedder.processor(batch, ["query"] * 6)
    for chosen in ([4, 1], [5, 0, 2], [3, 0], [2]):
        selected = embedder.processor.select_items(inputs, chosen, images)
        alone, _ = embedder.processor([batch[item] for item in chosen], ["query"] * len(chosen))
        assert selected.keys() == alone.keys()
        torch.testing.assert_close(selected["input_ids"], alone["input_ids"], rtol=0, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(embedder(selected).paths, embedder(alone).paths, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mean", "softmax", "routed", "concat"])
def test_fused_embeddings_are_unit_and_of_the_stated_size(embedder_of, kind):
    embedder = embedder_of("llava_next", fusion=kind)
    output = embedder.embed(items("mixed", 3))
    assert output.fused.shape == (3, embedder.config.fused_size)
    torch.testing.assert_close(output.fused.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(output.paths.norm(dim=-1), torch.ones(3, 3))


def test_softmax_fusion_starts_as_the_mean_and_follows_its_weights():
    embeddings = torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=-1)
    every = torch.arange(3)
    fusion = Fusion("softmax", 3, 8)
    torch.testing.assert_close(fusion(embeddings, every)[0], Fusion("mean", 3, 8)(embeddings, every)[0])
    with torch.no_grad():
        fusion.logits.copy_(torch.tensor([0.0, 50.0, 0.0]))
    torch.testing.assert_close(fusion(embeddings, every)[0], embeddings[:, 1])


def test_routed_fusion_starts_as_the_mean_and_weighs_the_paths_of_each_input_by_themselves():
    embeddings = torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=-1)
    every = torch.arange(3)
    fusion = Fusion("routed", 3, 8)
    torch.testing.assert_close(fusion(embeddings, every)[0], Fusion("mean", 3, 8)(embeddings, every)[0])
    with torch.no_grad():
        fusion.logits.copy_(5 * torch.randn(3, 8))
    for paths in ([0, 1, 2], [2, 0], [1]):
        fused, _ = fusion(embeddings[:, paths], torch.tensor(paths))
        for row, one in zip(fused, embeddings, strict=True):
            weights = [torch.exp(fusion.logits[k] @ one[k]) for k in paths]
            total = sum(weight * one[k] for weight, k in zip(weights, paths, strict=True))
            torch.testing.assert_close(row, total / total.norm())


def test_truncated_dimensions_are_normalised_again(embedder_of):
    embedder = embedder_of("llava_next")
    batch = items("text", 2)
    whole, short = embedder.embed(batch).paths, embedder.embed(batch, truncate_dim=8).paths
    torch.testing.assert_close(short, torch.nn.functional.normalize(whole[..., :8], dim=-1))


@pytest.mark.parametrize(
    "settings", [{"paths": 0}, {"paths": 2, "prefix_length": 0}, {"paths": 2, "prefix_length": 4, "prefix_layers": []}]
)
def test_paths_that_could_not_differ_are_refused(settings):
    with pytest.raises(ValueError, match="paths"):
        ParallelEmbedderConfig(**settings)


@pytest.mark.parametrize(("layers", "expected"), [("all", [0, 1]), (1, [1]), ([0], [0])])
def test_prefixes_stand_in_the_layers_asked_for_and_are_drawn_apart(embedder_of, layers, expected):
    embedder = embedder_of("qwen2_vl", prefix_layers=layers, prefix_init="tokens")
    holders = [number for number, layer in enumerate(embedder.decoder.layers) if hasattr(layer.self_attn, "prefix")]
    assert holders == expected
    prefix = embedder.decoder.layers[expected[0]].self_attn.prefix
    assert prefix.key.shape == (3, 5, 2, 8)
    assert (prefix.key[0] - prefix.key[1]).abs().max() > 0.01


def test_a_layer_that_does_not_exist_is_named(embedder_of):
    with pytest.raises(ValueError, match="layer 7"):
        embedder_of("qwen2_vl", prefix_layers=[7])
