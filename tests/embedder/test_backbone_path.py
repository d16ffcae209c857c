"""Why a backbone cannot be used is told in one sentence that names it, by everything that reads it."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_backbone
from tiny_runs import tiny_config
from transformers import BertConfig

from pdfx.embedder.build import build_embedder, build_on_meta
from pdfx.embedder.exports import load_export
from pdfx.errors import UserError

SUPPORTED = "are not supported; supported are qwen2_vl, llava_next"


def with_config(folder: Path, family: str, **settings) -> Path:
    """A backbone whose config.json says something else in its top or, for ``part__name``, in a part."""
    path = Path(shutil.copytree(tiny_backbone(family, folder / family), folder / "changed"))
    tree = json.loads((path / "config.json").read_text())
    for name, value in settings.items():
        part, _, own = name.rpartition("__")
        (tree[part] if part else tree)[own] = value
    (path / "config.json").write_text(json.dumps(tree))
    return path


def text_model(folder: Path) -> Path:
    BertConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(folder / "bert")
    return folder / "bert"


CASES = {
    "text model": (text_model, f"Backbones of type 'bert' {SUPPORTED}"),
    "unknown type": (
        lambda folder: with_config(folder, "qwen2_vl", model_type="mine"),
        f"Backbones of type 'mine' {SUPPORTED}",
    ),
    "unknown tower": (
        lambda folder: with_config(folder, "llava_next", vision_config__model_type="mine"),
        "parts of type 'mine', which no class is",
    ),
    "no type": (lambda folder: with_config(folder, "qwen2_vl", model_type=None), "is missing, or names no model_type"),
    "no config": (lambda folder: folder, "is missing, or names no model_type"),
    "a path": (lambda folder: "./absent", r"'./absent' does not exist here \(relative to .*\); give"),
    "a long path": (lambda folder: "a/b/absent", r"'a/b/absent' does not exist here \(relative to .*\); give"),
    "a name": (
        lambda folder: "models/absent",
        r"'models/absent' does not exist here \(relative to .*\), and it cannot be read from the Hugging Face hub",
    ),
}


@pytest.mark.parametrize("build", [build_embedder, build_on_meta])
@pytest.mark.parametrize("case", CASES)
def test_a_backbone_that_cannot_be_used_is_told_in_one_sentence(tmp_path, monkeypatch, case, build):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make, words = CASES[case]
    config = tiny_config(tmp_path)
    config.model.path = str(make(tmp_path))
    with pytest.raises(UserError, match=words) as error:
        build(config)
    assert (
        str(error.value).startswith(f"model.path '{config.model.path}'")
        and "\n" not in str(error.value)
        and len(str(error.value)) < 650
    )


def test_a_relative_path_is_recorded_so_that_it_holds_elsewhere(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.py").write_text("")
    config.model.path, config.model.modules, config.model.trust_remote_code = "qwen2_vl", ["classes.py"], True
    build_on_meta(config)
    assert (config.model.path, config.model.modules) == (str(tmp_path / "qwen2_vl"), [str(tmp_path / "classes.py")])


def test_an_export_of_an_unknown_type_is_told_as_shortly(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "pdfx_parallel_embedder", "backbone": {"model_type": "mine"}})
    )
    with pytest.raises(
        UserError, match="type 'mine' is neither known to the installed transformers nor registered"
    ) as error:
        load_export(tmp_path)
    assert len(str(error.value)) < 400
