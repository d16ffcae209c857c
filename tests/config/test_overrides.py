"""Settings on the command line: taken as they are typed, each once."""

import pytest
from tiny_recipes import recipe

from pdfx.config import Config, ConfigError, load_config


def load(tmp_path, *overrides: str) -> Config:
    return load_config(recipe(tmp_path), list(overrides))


TEXTS = [
    "Query #: x",
    "Find: ",
    "a: b",
    "{x}",
    "[x",
    "'x'",
    '"',
    "# all",
    "null",
    "",
    " ",
    "*x",
    "&x",
    "!x",
    "%",
    "x=y",
    "a\nb",
    "- a",
]


@pytest.mark.parametrize("text", TEXTS)
def test_an_instruction_is_the_text_after_the_first_equals_sign(tmp_path, text):
    assert load(tmp_path, f"inputs.query_instruction={text}").inputs.query_instruction == text


def test_paths_keep_blanks_and_signs_of_comments(tmp_path):
    assert load(tmp_path, "train.output_dir=runs/a #1").train.output_dir == "runs/a #1"
    assert load(tmp_path, "data.train=a: b").data.train == "a: b"


def test_null_lists_and_sections_are_read_where_a_setting_may_be_one(tmp_path):
    config = load(
        tmp_path,
        "model.lora=null",
        "model.matryoshka_dims=[8, 16]",
        "data.train=[a, b]",
        "data.cache_dir=",
        "inputs.image_grid_pinpoints=[[336, 672]]",
    )
    assert (
        config.model.lora is None
        and config.model.matryoshka_dims == [8, 16]
        and config.data.train == ["a", "b"]
        and config.data.cache_dir is None
    )
    assert config.inputs.image_grid_pinpoints == [(336, 672)]
    assert load(tmp_path, "model.lora={r: 4, dora: yes}").model.lora.dora is True
    assert load(tmp_path, "model.lora.r=4").model.lora.r == 4
    assert load(tmp_path, "model.prefix.layers=3").model.prefix.layers == 3
    assert load(tmp_path, "train.save_in_background=off").train.save_in_background is False


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.seed=1", "train.seed=2"], "'train.seed=1' and 'train.seed=2' set the same"),
        (["model.lora.r=4", "model.lora=null"], "'model.lora.r=4' and 'model.lora=null' set the same"),
        (["model.lora=null", "model.lora.r=4"], "set the same"),
        (["data.train.0.path=x"], "goes through 'train', which is a value"),
        (["train.seed.x=1"], "'train.seed' is {'x': '1'}"),
        (["train.seed"], "must have the form"),
        (["=1"], "must have the form"),
        (["model.pathes=3"], "unknown key 'model.pathes'; did you mean 'model.paths'"),
        (["data.train=[{path: a, wight: 1}]"], "unknown key 'data.train.wight'; did you mean 'data.train.weight'"),
        (["model.matryoshka_dims=[8,"], "the override of 'model.matryoshka_dims' is not valid YAML"),
        (["model.matryoshka_dims=8"], "'model.matryoshka_dims' is '8'"),
        (["train.max_steps="], "exactly one of max_steps and num_train_epochs"),
        (["train.seed="], "'train.seed' is ''"),
        (["data.train=" + "[" * 400], "nests more than"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused_in_a_sentence(tmp_path, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(tmp_path, *overrides)
    assert "\n" not in str(caught.value)
