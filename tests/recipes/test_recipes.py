"""Every shipped recipe loads, and fits the real model it names: checked against that model's configuration, without
weights."""

from pathlib import Path

import pytest
import yaml

from pdfx.config import dump_config, load_config, parse_config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.embedder.build import build_on_meta
from pdfx.model.prefixes import prefixes_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
CONFIGS = Path(__file__).parent / "model_configs"
# Parameters of the embedding models, without the language-model head (published sizes), and of one path's prefixes at P
# = 48.
SIZES = {
    "qwen2-vl-2b": (2.209e9, 0.688e6),
    "qwen2-vl-7b": (7.746e9, 1.376e6),
    "llava-1.6-7b-lr": (7.435e9, 3.146e6),
    "llava-1.6-7b-hr": (7.435e9, 3.146e6),
}
LARGE = [recipe for recipe in RECIPES if recipe.stem in SIZES]


def test_the_recipes_that_users_are_promised_are_there():
    assert {recipe.stem for recipe in RECIPES} == {"quickstart", *SIZES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_loads_round_trips_and_fits_its_deepspeed_file(recipe):
    config = load_config(recipe)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    settings = load_deepspeed_config(config.train.deepspeed, config.train, world_size=8)
    assert settings["zero_optimization"]["stage"] in (1, 2, 3)


@pytest.fixture(scope="module", params=LARGE, ids=lambda recipe: recipe.stem)
def meta(request):
    config = load_config(request.param)
    config.model.path = str(CONFIGS / config.model.path.split("/")[-1])
    return request.param.stem, config, build_on_meta(config)


def test_a_recipe_fits_the_real_models_shape(meta):
    name, config, embedder = meta
    total, per_path = SIZES[name]
    assert {parameter.device.type for parameter in embedder.parameters()} == {"meta"}
    prefixes = sum(parameter.numel() for prefix in prefixes_of(embedder) for parameter in prefix.parameters())
    assert prefixes / config.model.paths == pytest.approx(per_path, rel=1e-3)
    adapters = sum(parameter.numel() for key, parameter in embedder.named_parameters() if "lora_" in key)
    backbone = sum(parameter.numel() for parameter in embedder.parameters()) - prefixes - adapters
    assert backbone == pytest.approx(total, rel=1e-3)
    trainable = sum(parameter.numel() for parameter in embedder.parameters() if parameter.requires_grad)
    assert trainable == prefixes + adapters


def test_a_recipe_adapts_every_decoder_layer_and_nothing_of_the_vision_tower(meta):
    _, config, embedder = meta
    adapted = [key for key, _ in embedder.named_parameters() if "lora_A" in key]
    layers = embedder.config.backbone.get_text_config().num_hidden_layers
    assert len(adapted) == layers * len(config.model.lora.targets)
    assert not any(embedder.family.vision in key for key in adapted)


@pytest.mark.parametrize("recipe", LARGE, ids=lambda recipe: recipe.stem)
def test_a_recipe_holds_the_vlm2vec_baseline_values(recipe):
    config = load_config(recipe)
    train, lora = config.train, config.model.lora
    assert (config.objective.temperature, config.model.pooling) == (0.02, "last")
    assert (lora.r, lora.alpha, lora.dropout, set(lora.targets)) == (
        8,
        64,
        0.1,
        {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"},
    )
    assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps, train.max_steps) == (
        2e-5,
        "linear",
        100,
        2000,
    )
    assert 8 * train.per_device_train_batch_size * train.gradient_accumulation_steps == 1024
    resolution = {"llava-1.6-7b-lr": [(336, 336)], "llava-1.6-7b-hr": [(1344, 1344)]}.get(recipe.stem)
    assert config.inputs.image_grid_pinpoints == resolution
    assert train.bf16
