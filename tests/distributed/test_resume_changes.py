"""A run that is taken up with other frozen weights or other settings: refused if its embeddings would change, told
otherwise."""

import json
import shutil
from pathlib import Path

import pytest
from distributed.test_checkpoint_saving import run_telling
from safetensors.torch import load_file, save_file
from tiny_models import tiny_backbone
from tiny_runs import tiny_config

from pdfx.checkpoint.identity import FROZEN
from pdfx.config import Config, dump_config
from pdfx.convert import convert
from pdfx.distributed.world import join_world
from pdfx.errors import UserError

CACHED = "cache_vision"


def recipe(folder: Path, backbone: Path, stage: str = "zero3", **sections: dict) -> Config:
    model = {"path": str(backbone), "lora": {"r": 2, "targets": ["q_proj"]}} | sections.pop("model", {})
    train = {"max_steps": 1, "save_steps": 1, "output_dir": str(folder / "run")} | sections.pop("train", {})
    return tiny_config(folder, "llava_next", stage, model=model, train=train, **sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, two_ranks) -> Path:
    folder = tmp_path_factory.mktemp("taken-up")
    assert (
        "Finished after step 1"
        in two_ranks.run(run_telling, recipe(folder, tiny_backbone("llava_next", folder / "llava_next")))[0]
    )
    return folder


@pytest.fixture(scope="module")
def other(folder) -> Path:
    """The same backbone but for the last bit of one weight."""
    copy = shutil.copytree(folder / "llava_next", folder / "other")
    weights = load_file(copy / "model.safetensors")
    weight = next(weights[name] for name in sorted(weights) if name.endswith("down_proj.weight")).flatten()
    weight[3] = weight[3].nextafter(weight[3] + 1)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def frozen_of(config: Config) -> str:
    """In a rank: the fingerprint of the frozen weights."""
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    trainer.close()
    trainer.engine.destroy()
    return trainer.constants[FROZEN]


@pytest.mark.parametrize(
    ("stage", "cached"), [("zero2", False), ("zero2", True), ("zero3", True), ("zero3_offload", False)]
)
def test_frozen_weights_have_the_same_fingerprint_however_they_are_kept(folder, two_ranks, stage, cached):
    expected = two_ranks.run(frozen_of, recipe(folder, folder / "llava_next"))[0]
    config = recipe(
        folder,
        folder / "llava_next",
        stage,
        model={CACHED: cached},
        train={"output_dir": str(folder / f"{stage}-{cached}")},
    )
    assert two_ranks.run(frozen_of, config) == [expected, expected]


def test_other_frozen_weights_of_the_same_shapes_are_refused_by_a_resume_and_by_the_converter(
    folder, other, two_ranks, tmp_path
):
    told = two_ranks.run(run_telling, recipe(folder, other, train={"max_steps": 2}))[0]
    assert told.startswith(
        f"The frozen weights of model.path '{other}' are not those that {folder}/run/checkpoints/step-00000001 was "
        "trained on"
    )
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "config.yaml").write_text(dump_config(recipe(folder, other)))
    for adapter in (False, True):
        with pytest.raises(UserError, match="The frozen weights of model.path .* are not those that"):
            convert(run, tmp_path / "export", check=False, adapter=adapter)
    (run / "config.yaml").write_text(dump_config(recipe(folder, folder / "llava_next", inputs={"max_text_tokens": 23})))
    with pytest.raises(UserError, match="inputs.max_text_tokens is '23' and was '24' up to"):
        convert(run, tmp_path / "export", check=False)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
def test_another_tokenizer_or_image_processor_is_refused_by_a_resume(folder, two_ranks, tmp_path, name):
    copy = shutil.copytree(folder / "llava_next", tmp_path / "copy")
    settings = json.loads((copy / name).read_text())
    if name == "tokenizer.json":
        words = settings["model"]["vocab"]
        words["c"], words["w"] = words["w"], words["c"]
    else:
        settings["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    (copy / name).write_text(json.dumps(settings))
    told = two_ranks.run(run_telling, recipe(folder, copy, train={"max_steps": 2}))[0]
    assert told.startswith(f"The processor of model.path '{copy}' makes other inputs")


def test_a_setting_that_decides_embeddings_is_refused_and_a_choice_is_told(folder, two_ranks, tmp_path):
    backbone = folder / "llava_next"
    told = two_ranks.run(run_telling, recipe(folder, backbone, inputs={"query_instruction": "find: "}))[0]
    assert told.startswith("inputs.query_instruction is 'find: ' and was '' up to ")
    moved, run = shutil.copytree(backbone, tmp_path / "moved"), shutil.copytree(folder / "run", tmp_path / "run")
    changed = recipe(
        folder,
        moved,
        train={"max_steps": 2, "learning_rate": 1e-4, "output_dir": str(run)},
        objective={"temperature": 0.2},
    )
    told = " ".join(two_ranks.run(run_telling, changed)[0].split())
    for sentence in (
        f"model.path is {moved} from here on; it was {backbone} up to the checkpoint.",
        "train.learning_rate is 0.0001 from here on; it was 0.001 up to the checkpoint.",
        "objective.temperature is 0.2 from here on; it was 0.1 up to the checkpoint.",
        "train.max_steps is 2 from here on; it was 1 up to the checkpoint.",
    ):
        assert sentence in told
    assert "Finished after step 2" in told and told.count("from here on") == 4
    convert(run, tmp_path / "export", check=False)
