"""A model is loaded whole or not at all: no weight is ever drawn anew in silence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_exports import tiny_export
from tiny_models import FAMILIES, tiny_backbone
from tiny_runs import tiny_config
from transformers import AutoModelForImageTextToText

from pdfx.config import ModelSection
from pdfx.convert.backbone import open_backbone
from pdfx.embedder.build import build_embedder
from pdfx.embedder.exports import load_export
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder

DAMAGES = {
    "missing": r"lacks \d+ weights of the model, .* among them",
    "shape": r"holds 1 weights of another shape than the model's",
    "nan": r"holds 1 weights with NaN or infinity",
    "infinite": r"holds 1 weights with NaN or infinity",
}


def damage(directory: Path, kind: str, word: str = "norm", form: str = "one") -> None:
    """Spoil a directory's weights whose names hold ``word``, and write them in another form."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    names = [name for name in weights if word in name]
    for name in names if kind == "missing" else names[:1]:
        value = weights.pop(name)
        if kind == "shape":
            weights[name] = torch.zeros(value.shape[0] + 1, *value.shape[1:])
        elif kind in ("nan", "infinite"):
            weights[name] = value.clone()
            weights[name].view(-1)[-1] = torch.nan if kind == "nan" else -torch.inf
    file.unlink()
    if form == "pickled":
        torch.save(weights, directory / "pytorch_model.bin")
    elif form == "shards":
        half = dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])
        places = {name: f"model-{number}.safetensors" for number, part in enumerate(half) for name in part}
        for number, part in enumerate(half):
            save_file(part, directory / f"model-{number}.safetensors", {"format": "pt"})
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "one") for kind in DAMAGES), ("missing", "shards"), ("missing", "pickled"), ("shape", "pickled")],
)
def test_training_does_not_start_on_a_backbone_that_is_not_whole(tmp_path, kind, form):
    config = tiny_config(tmp_path, "llava_next" if form == "shards" else "qwen2_vl")
    damage(Path(config.model.path), kind, form=form)
    with pytest.raises(UserError, match=DAMAGES[kind]) as error:
        build_embedder(config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["missing", "shape"])
def test_a_conversion_does_not_take_up_a_pickled_backbone_that_is_not_whole(tmp_path, kind):
    path = tiny_backbone("qwen2_vl", tmp_path / "backbone")
    damage(path, kind, form="pickled")
    with pytest.raises(UserError, match=DAMAGES[kind]):
        open_backbone(ModelSection(path=str(path)), None)


@pytest.fixture(scope="module", params=FAMILIES)
def export(request, tmp_path_factory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("export"), request.param)


@pytest.mark.parametrize(("word", "form"), [("norm", "one"), ("prefix", "shards")])
@pytest.mark.parametrize("kind", DAMAGES)
def test_an_export_that_is_not_whole_is_refused(export, tmp_path, kind, word, form):
    shutil.copytree(export, tmp_path / "export")
    damage(tmp_path / "export", kind, word, form)
    with pytest.raises(UserError, match=DAMAGES[kind]):
        load_export(tmp_path / "export")


def test_weights_that_the_model_does_not_have_are_refused_in_an_export_and_told_of_a_backbone(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    settings = json.loads((export / "config.json").read_text())
    (tmp_path / "export/config.json").write_text(json.dumps(settings | {"prefix_layers": [1]}))
    with pytest.raises(
        UserError, match="holds 2 weights that the model does not have, backbone.language_model.layers.0"
    ):
        load_export(tmp_path / "export")
    backbone = shutil.copytree(export.parent / "backbone", tmp_path / "backbone")
    weights = load_file(backbone / "model.safetensors")
    save_file(weights | {"stranger": torch.ones(2)}, backbone / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="holds 1 weights that the model does not have, stranger among them"):
        ParallelEmbedder.from_backbone(str(backbone), paths=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_with_a_head_for_text_is_a_whole_backbone(tmp_path, family):
    path = tiny_backbone(family, tmp_path / "backbone")
    expected = load_file(path / "model.safetensors")
    AutoModelForImageTextToText.from_pretrained(path).save_pretrained(path)
    assert any("lm_head" in name for name in load_file(path / "model.safetensors"))
    own = ParallelEmbedder.from_backbone(str(path), paths=1).backbone.state_dict()
    assert own.keys() >= {"language_model.norm.weight"} and len(own) == len(expected)


def refusal_under_zero3(config) -> str:
    """In a rank: the sentence with which loading into shards ends."""
    from pdfx.config.deepspeed_file import load_deepspeed_config
    from pdfx.distributed.world import join_world
    from pdfx.train.engine import sharded_loading

    world = join_world()
    settings = load_deepspeed_config(config.train.deepspeed, config.train, world.size)
    try:
        with sharded_loading(settings) as gathered:
            build_embedder(config, gathered=gathered)
    except UserError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("kind", ["missing", "shape"])
def test_loading_into_shards_refuses_too(tmp_path, two_ranks, kind):
    config = tiny_config(tmp_path, "qwen2_vl", "zero3")
    damage(Path(config.model.path), kind)
    told = two_ranks.run(refusal_under_zero3, config, timeout=60)
    assert told[0] == told[1] and ("lacks" if kind == "missing" else "size mismatch") in told[0], told
