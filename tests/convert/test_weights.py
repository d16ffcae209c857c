"""Merging weight by weight gives what merging the whole model gives, from checkpoints of any number of ranks."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from tiny_checkpoints import checkpoint_of, recipe, trained
from tiny_models import FAMILIES, items, tiny_backbone
from transformers import AutoModel, AutoModelForImageTextToText

from pdfx.config import Config
from pdfx.convert import weights as weights_module
from pdfx.convert.adapter import write_adapter
from pdfx.convert.weights import WeightSource, plan_shards
from pdfx.embedder.build import build_embedder, build_on_meta
from pdfx.embedder.exports import load_export
from pdfx.embedder.lora import adapted_modules, merged_weight, remove_adapters
from pdfx.errors import UserError

LORA = {"r": 2, "alpha": 8, "targets": ["q_proj", "down_proj"]}
KINDS = {
    "lora": {"lora": LORA},
    "dora": {"lora": LORA | {"dora": True}},
    "full": {"lora": None, "train_vision": True},
    "prefixes": {"lora": LORA, "paths": 3},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_exported_weight_is_that_of_the_whole_merged_model_bit_for_bit(tmp_path, monkeypatch, family, kind):
    # Pieces that are smaller than most weights.
    monkeypatch.setattr(weights_module, "BLOCK", 100)
    check_against_whole_model(recipe(tiny_backbone(family, tmp_path / "backbone"), **KINDS[kind]), tmp_path)


def test_a_backbone_in_bfloat16_is_merged_in_float32(tmp_path):
    path = tiny_backbone("qwen2_vl", tmp_path / "backbone")
    transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    assert transformers.AutoConfig.from_pretrained(path).dtype == torch.bfloat16
    check_against_whole_model(recipe(path, **KINDS["lora"]), tmp_path)


def check_against_whole_model(config: Config, folder: Path) -> None:
    embedder = trained(config)
    source = WeightSource(
        build_on_meta(config).eval(), config.model, checkpoint_of(embedder, folder / "checkpoint", ranks=3)
    )
    for module in adapted_modules(embedder).values():
        merged_weight(module)
    expected = remove_adapters(embedder).state_dict()
    weights = source.merged_weights(torch.float32)
    assert [weight.entry.name for weight in weights] == list(expected)
    for weight in weights:
        assert weight.entry.shape == expected[weight.entry.name].shape
        assert torch.equal(torch.cat(list(weight.pieces())).view(weight.entry.shape), expected[weight.entry.name]), (
            weight.entry.name
        )


@pytest.mark.parametrize(("family", "kind"), [("qwen2_vl", "dora"), ("llava_next", "lora")])
def test_an_adapter_export_embeds_as_the_trained_model(tmp_path, family, kind):
    config = recipe(tiny_backbone(family, tmp_path / "backbone"), train_projector=True, **KINDS[kind])
    embedder = trained(config)
    checkpoint = checkpoint_of(embedder, tmp_path / "checkpoint", ranks=2)
    write_adapter(
        WeightSource(build_on_meta(config).eval(), config.model, checkpoint),
        tmp_path / "export",
        config,
        checkpoint,
        torch.float32,
    )
    batch = items("mixed")
    own, fresh = load_export(tmp_path / "export").embed(batch), build_embedder(config).eval().embed(batch)
    expected = embedder.embed(batch)
    assert (expected.paths - fresh.paths).abs().max() > 1e-2
    for name in ("paths", "fused"):
        torch.testing.assert_close(own[name], expected[name], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("error:Found missing adapter keys")
@pytest.mark.parametrize(("family", "kind"), [("qwen2_vl", "dora"), ("llava_next", "lora")])
def test_the_adapter_opens_on_the_backbone_with_its_head_for_text_as_without(tmp_path, family, kind):
    path = tiny_backbone(family, tmp_path / "backbone")
    config = recipe(path, **KINDS[kind])
    checkpoint = checkpoint_of(trained(config), tmp_path / "checkpoint", ranks=1)
    write_adapter(
        WeightSource(build_on_meta(config).eval(), config.model, checkpoint),
        tmp_path / "export",
        config,
        checkpoint,
        torch.float32,
    )
    plain, *fresh = (kind.from_pretrained(path) for kind in (AutoModel, AutoModel, AutoModelForImageTextToText))
    merged = [
        PeftModel.from_pretrained(model, tmp_path / "export", subfolder="adapter").merge_and_unload() for model in fresh
    ]
    without, inside = merged[0].state_dict(), merged[1].model.state_dict()
    assert without.keys() == inside.keys() and all(torch.equal(without[name], inside[name]) for name in without)
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, without[name])}
    assert changed and all(
        "language_model" in name and any(target in name for target in LORA["targets"]) for name in changed
    )


def test_full_fine_tuning_has_no_adapter_to_export(tmp_path):
    config = recipe(tiny_backbone("qwen2_vl", tmp_path / "backbone"), **KINDS["full"])
    checkpoint = checkpoint_of(trained(config), tmp_path / "checkpoint", ranks=1)
    with pytest.raises(UserError, match="trained without LoRA"):
        write_adapter(
            WeightSource(build_on_meta(config).eval(), config.model, checkpoint),
            tmp_path / "export",
            config,
            checkpoint,
            torch.float32,
        )


def test_shards_are_cut_where_the_next_weight_would_not_fit(tmp_path):
    config = recipe(tiny_backbone("qwen2_vl", tmp_path / "backbone"), **KINDS["full"])
    source = WeightSource(
        build_on_meta(config).eval(), config.model, checkpoint_of(trained(config), tmp_path / "checkpoint", ranks=1)
    )
    weights = source.merged_weights(torch.bfloat16)
    shards = plan_shards(weights, 5000)
    assert [weight for shard in shards for weight in shard] == weights
    sizes = [sum(weight.entry.bytes for weight in shard) for shard in shards]
    assert all(size <= 5000 or len(shard) == 1 for size, shard in zip(sizes, shards, strict=True)) and max(sizes) > 5000
    assert all(size + following[0].entry.bytes > 5000 for size, following in zip(sizes, shards[1:], strict=False))
