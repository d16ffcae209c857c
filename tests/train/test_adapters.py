"""LoRA goes where it was sent and nowhere else, folds away exactly, and each recipe trains what it says."""

import pytest
import torch
from tiny_models import FAMILIES, items, tiny_backbone

from pdfx.config import LoraSection, ModelSection
from pdfx.embedder.lora import adapted_modules, apply_lora, merged_weight, remove_adapters, set_trainable
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder


@pytest.fixture(scope="module", params=FAMILIES)
def path(request, tmp_path_factory):
    return tiny_backbone(request.param, tmp_path_factory.mktemp("backbone") / request.param)


def embedder(path) -> ParallelEmbedder:
    return ParallelEmbedder.from_backbone(str(path), seed=1, paths=2, prefix_length=3, fusion="softmax")


def trained(model: ParallelEmbedder) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_lora_adapts_the_decoder_alone_though_the_vision_tower_has_modules_of_the_same_name(path):
    model = embedder(path)
    apply_lora(model, LoraSection(targets=["q_proj", "v_proj", "down_proj"], r=2))
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(adapted) == 2 * 3 * 2
    assert all(name.startswith("backbone.language_model.") for name in adapted)


def test_a_target_that_names_nothing_is_an_error_that_lists_what_there_is(path):
    with pytest.raises(
        UserError, match=r"names 'query', which no linear module of the decoder is called; it has .*q_proj"
    ):
        apply_lora(embedder(path), LoraSection(targets=["q_proj", "query"]))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_leaves_the_embeddings_and_plain_weights(path, dora):
    model = embedder(path)
    names = [name for name, _ in model.named_parameters()]
    apply_lora(model, LoraSection(targets=["q_proj", "down_proj"], r=2, dora=dora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    before = model.embed(items("mixed"), "query").paths
    plain = embedder(path).embed(items("mixed"), "query").paths
    for module in adapted_modules(model).values():
        assert merged_weight(module).shape == module.get_base_layer().weight.shape
    after = remove_adapters(model).embed(items("mixed"), "query").paths
    assert (before - plain).abs().max() > 1e-3
    # One weight instead of two products, each sum of some 64 float32 terms of size 1.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names


def test_new_adapters_depend_on_the_seed_and_not_on_what_was_drawn_since(path):
    def draw(skipped: int) -> torch.Tensor:
        model = embedder(path)
        torch.manual_seed(5)
        torch.rand(skipped)
        apply_lora(model, LoraSection(targets=["q_proj"]))
        return next(parameter.detach() for name, parameter in model.named_parameters() if "lora_A" in name)

    assert torch.equal(draw(0), draw(17))


def settings(path, **values) -> ModelSection:
    return ModelSection(path=str(path), **values)


def test_under_lora_only_adapters_prefixes_and_fusion_are_trained(path):
    model = embedder(path)
    apply_lora(model, LoraSection(targets=["q_proj"]))
    set_trainable(model, settings(path))
    assert trained(model) == {
        name
        for name, _ in model.named_parameters()
        if "lora_" in name or ".prefix." in name or name.startswith("fusion.")
    }


def test_full_fine_tuning_trains_the_language_model_and_the_projector_but_not_the_vision_tower(path):
    model = embedder(path)
    set_trainable(model, settings(path, lora=None))
    projector = f"backbone.{model.family.projector}."
    tower = f"backbone.{model.family.vision}."
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(tower) and not name.startswith(projector)
    }
    assert frozen


def test_vision_tower_and_projector_follow_their_settings(path):
    model = embedder(path)
    set_trainable(model, settings(path, lora=None, train_vision=True, train_projector=False))
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    projector = {name for name, _ in model.named_parameters() if name.startswith(f"backbone.{model.family.projector}.")}
    # LLaVA-NeXT's backbone owns the embedding of a picture's line break, which belongs to how pictures enter the
    # decoder.
    assert frozen - {"backbone.image_newline"} == projector
