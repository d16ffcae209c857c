"""What a recipe's file may be, and that every value means what is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_recipes import recipe

from pdfx.config import ConfigError, dump_config, load_config

WRITTEN = [
    "010",
    "1:30",
    "1_000",
    "0x10",
    "1e-4",
    "2024-01-01",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "=",
    "Null-like",
    "0b1",
    ".5",
    "+1",
    "12:30:45",
]
"""Texts that YAML 1.1 takes for numbers, dates or truth values."""


@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_setting_holds_what_was_written_in_a_file_and_in_an_override(tmp_path, text):
    sections = f"inputs: {{query_instruction: {text}}}\n"
    assert load_config(recipe(tmp_path, sections)).inputs.query_instruction == text
    config = load_config(
        recipe(tmp_path), [f"inputs.query_instruction={text}", f"data.train=[{{path: a, name: {text}}}]"]
    )
    assert config.inputs.query_instruction == text and config.data.training_sets()[0].name == text
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("1_000", 1000), ("+7", 7), ("2.0", 2)])
def test_a_whole_number_is_decimal(tmp_path, text, value):
    assert load_config(recipe(tmp_path, save_steps=text)).train.save_steps == value
    assert load_config(recipe(tmp_path), [f"train.save_steps={text}"]).train.save_steps == value


@pytest.mark.parametrize("text", ["1:30", "0o10", "2024-01-01", "yes"])
def test_what_is_not_a_number_is_refused_with_the_key(tmp_path, text):
    for written, overrides in (({"save_steps": text}, []), ({}, [f"train.save_steps={text}"])):
        with pytest.raises(ConfigError, match=f"'train.save_steps' is '{text}'"):
            load_config(recipe(tmp_path, **written), overrides)


@pytest.mark.parametrize(
    ("text", "value"), [("no", False), ("off", False), ("On", True), ("true", True), ("1e-4", 1e-4), (".5", 0.5)]
)
def test_truth_values_and_fractions_are_read_for_settings_that_are_such(tmp_path, text, value):
    key = "bf16" if isinstance(value, bool) else "learning_rate"
    assert getattr(load_config(recipe(tmp_path, **{key: text})).train, key) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "model: {path: a}\ndata: {train: b}\nmodel: {path: c}\n",
            "the key 'model' is given twice, in line 1 and in line 3; keep one",
        ),
        ("model:\n  path: a\n  paths: 2\n  path: b\n", "the key 'path' is given twice, in line 2 and in line 4"),
        ("data: {train: [{path: a, path: b}]}", "the key 'path' is given twice"),
        ("a: &a [*a]", "'&a' contains itself"),
        ("a: " + "[" * 500 + "]" * 500, "nests more than 30 levels"),
        ("a: " + "{a: " * 500 + "}" * 500, "nests more than 30 levels"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(1, 200)), "not a valid recipe|must hold|unknown key"),
        ("a: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("- 1", "must hold sections .* not list"),
        ("", "must hold sections .* not nothing"),
        ("model: {path: a}\n---\nmodel: {path: b}\n", "expected a single document"),
        ("model: {path: a}\nx" * 60_000, "more than 1,000,000 bytes"),
        ("\x00", "not a valid recipe"),
    ],
)
def test_a_file_that_is_not_one_plain_recipe_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def bomb(leaf: str, width: int = 9, depth: int = 9) -> str:
    """A small text whose aliases stand for ``width ** depth`` leaves."""
    lines = [f"a0: &a0 {leaf}"]
    return "\n".join([*lines, *(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * width)}]" for i in range(depth))]) + "\n"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from pdfx.config import ConfigError, load_config
for path in sys.argv[1:]:
    try:
        load_config(path)
    except ConfigError as error:
        print(len(str(error)), str(error)[:300])
"""


@pytest.mark.process
def test_bombs_pipes_and_devices_end_in_a_sentence_within_a_gigabyte_and_a_minute(tmp_path):
    texts = {
        "few": bomb("x"),
        "long": bomb("'" + "x" * 500_000 + "'", 9, 4),
        "merged": bomb("{path: x}").replace("[*", "{<<: [*").replace("]", "]}"),
    }
    paths = [tmp_path / f"{name}.yaml" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    os.mkfifo(tmp_path / "pipe.yaml")
    paths += [tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        length, _, sentence = line.partition(" ")
        assert str(path) in sentence and int(length) < 600


def test_anchors_and_merges_of_an_ordinary_size_work(tmp_path):
    common = "evaluate: &common {batch_size: 3, recall_at: [1]}\n"
    assert load_config(recipe(tmp_path, common)).evaluate.recall_at == [1]
    merged = "evaluate: {<<: {batch_size: 3, recall_at: [1]}, batch_size: 4}\n"
    evaluate = load_config(recipe(tmp_path, merged)).evaluate
    assert (evaluate.batch_size, evaluate.recall_at) == (4, [1])


def test_null_is_null_and_a_quoted_one_is_text(tmp_path):
    assert load_config(recipe(tmp_path, "inputs: {query_instruction: 'null'}\n")).inputs.query_instruction == "null"
    assert load_config(recipe(tmp_path, keep_steps="~")).train.keep_steps is None
    assert yaml.safe_load(dump_config(load_config(recipe(tmp_path, keep_steps="null"))))["train"]["keep_steps"] is None


def test_home_and_variables_are_filled_in_and_urls_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/fast disk")
    monkeypatch.setenv("HOME", "/home/me")
    overrides = [
        "data.cache_dir=~/c",
        "train.deepspeed=${SCRATCH}/z.json",
        "data.evaluation=[$SCRATCH/e, s3://b/$SCRATCH/~x]",
        "train.resume=~/run/step",
    ]
    config = load_config(
        recipe(tmp_path, output_dir="$SCRATCH/runs/a"),
        [*overrides, "data.train=[{path: ~/d}]", "model.modules=[~/m.py]", "model.path=~"],
    )
    assert (config.train.output_dir, config.train.deepspeed, config.train.resume) == (
        "/fast disk/runs/a",
        "/fast disk/z.json",
        "/home/me/run/step",
    )
    assert (config.data.cache_dir, config.data.evaluation) == ("/home/me/c", ["/fast disk/e", "s3://b/$SCRATCH/~x"])
    assert (config.data.train[0].path, config.model.modules, config.model.path) == (
        "/home/me/d",
        ["/home/me/m.py"],
        "/home/me",
    )
    wrong = {
        "''": "it is empty",
        "s3://b/x": "it must be a path on this machine",
        "file:///x": "it must be a path on this machine",
    }
    for text, sentence in {
        "$ABSENT/x": "the variable ABSENT is not set",
        "~nobody-here/x": "'~nobody-here' names no user",
        **wrong,
    }.items():
        with pytest.raises(ConfigError, match=f"recipe.yaml: in 'train.output_dir', {sentence}"):
            load_config(recipe(tmp_path, output_dir=text))
