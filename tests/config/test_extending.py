"""Recipes that extend another one, and names that stand for files which come with pdfx."""

from pathlib import Path

import pytest
import yaml
from tiny_recipes import recipe

from pdfx.config import ConfigError, dump_config, load_config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.config.recipe_file import MAX_FILES
from pdfx.config.run_files import DEEPSPEED, RECIPES, shipped_files
from pdfx.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_a_recipe_names_replaces_what_it_extends_key_by_key(tmp_path):
    recipe(tmp_path, "inputs: {max_text_tokens: 7, query_instruction: find}\nevaluate: {recall_at: [1, 2, 3]}\n")
    own = "extends: ../recipe.yaml\nmodel: {paths: 2, lora: null}\ninputs: {max_text_tokens: 9}\n"
    config = load_config(write(tmp_path / "own/short.yaml", own + "evaluate: {recall_at: [5]}\n"), ["train.seed=1"])
    assert (config.model.path, config.model.paths, config.model.lora) == ("backbone", 2, None)
    assert (config.inputs.max_text_tokens, config.inputs.query_instruction) == (9, "find")
    assert (config.evaluate.recall_at, config.train.max_steps, config.train.seed) == ([5], 5, 1)


def test_a_section_may_take_the_place_of_null_and_a_chain_ends_with_the_most_general_recipe(tmp_path):
    recipe(tmp_path, keep_steps="500")
    write(tmp_path / "middle.yaml", "extends: recipe.yaml\nmodel: {lora: null}\ntrain: {keep_steps: null}\n")
    config = load_config(write(tmp_path / "top.yaml", "extends: middle.yaml\nmodel: {lora: {r: 4}}\n"))
    assert config.model.lora.r == 4 and config.train.keep_steps is None


def test_the_resolved_configuration_extends_nothing(tmp_path):
    recipe(tmp_path)
    config = load_config(write(tmp_path / "top.yaml", "extends: recipe.yaml\ntrain: {seed: 3}\n"))
    text = dump_config(config)
    assert "extends" not in text
    assert load_config(write(tmp_path / "elsewhere/config.yaml", text)) == config


def test_a_shipped_recipe_can_be_extended_by_its_name_from_anywhere(tmp_path):
    config = load_config(write(tmp_path / "mine.yaml", "extends: qwen2-vl-7b\ntrain: {output_dir: mine}\n"))
    assert (config.train.output_dir, config.model.lora.alpha) == ("mine", 64)
    assert config == load_config(RECIPES / "qwen2-vl-7b.yaml", ["train.output_dir=mine"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: gone.yaml\n", "There is no recipe at .*gone.yaml, extended by .*top.yaml"),
        ("extends: qwen2\n", r"'extends' is 'qwen2', which is neither a file .* nor a shipped recipe \(.*qwen2-vl-2b"),
        ("extends: top.yaml\n", "top.yaml, which extends .*top.yaml: a circle"),
        ("extends: circle.yaml\n", "top.yaml, which extends .*circle.yaml, which extends .*top.yaml: a circle"),
        ("extends: [a.yaml, b.yaml]\n", "'extends' must be one file"),
        ("extends:\n", "'extends' must be one file"),
        ("extends: .yaml\n", "There is no recipe at"),
        ("extends: recipe.yaml\ntrain: {learning_rat: 1}\n", "did you mean 'train.learning_rate'"),
        ("extends: wrong.yaml\n", "top.yaml, which extends .*wrong.yaml, which extends .*: unknown key 'train.sed'"),
        ("train: {extends: recipe.yaml}\n", "unknown key 'train.extends'"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_files(tmp_path, text, sentence):
    recipe(tmp_path)
    write(tmp_path / "circle.yaml", "extends: top.yaml\n")
    write(tmp_path / "wrong.yaml", "extends: recipe.yaml\ntrain: {sed: 1}\n")
    with pytest.raises(ConfigError, match=sentence):
        load_config(write(tmp_path / "top.yaml", text))


def test_a_link_is_not_a_way_around_the_check_for_circles(tmp_path):
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    with pytest.raises(ConfigError, match="a circle"):
        load_config(tmp_path / "a.yaml")


def test_a_recipe_has_at_most_five_files(tmp_path):
    recipe(tmp_path).rename(tmp_path / "0.yaml")
    for number in range(1, MAX_FILES + 1):
        write(tmp_path / f"{number}.yaml", f"extends: {number - 1}.yaml\n")
    assert load_config(tmp_path / f"{MAX_FILES - 1}.yaml").train.max_steps == 5
    with pytest.raises(ConfigError, match="more than 5 files"):
        load_config(tmp_path / f"{MAX_FILES}.yaml")


def test_a_runs_own_configuration_extends_nothing_and_so_gets_consent_from_nowhere(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    trusted = yaml.safe_load(recipe(tmp_path).read_text())
    trusted["model"]["trust_remote_code"] = True
    write(tmp_path / "trusted.yaml", yaml.safe_dump(trusted))
    write(run / "config.yaml", "extends: ../trusted.yaml\nmodel: {modules: [evil.py]}\n")
    with pytest.raises(ConfigError, match="a run's resolved configuration, which extends nothing"):
        load_config(run / "config.yaml")


def test_the_consent_in_a_runs_configuration_does_not_count_for_a_recipe_that_extends_it(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    tree = yaml.safe_load(recipe(tmp_path).read_text())
    tree["model"]["trust_remote_code"] = True
    write(run / "config.yaml", yaml.safe_dump(tree))
    assert not load_config(write(tmp_path / "top.yaml", "extends: run/config.yaml\n")).model.trust_remote_code
    own = write(tmp_path / "own.yaml", "extends: run/config.yaml\nmodel: {trust_remote_code: true}\n")
    assert load_config(own).model.trust_remote_code


@pytest.mark.parametrize("name", sorted(shipped_files(DEEPSPEED)))
def test_a_shipped_deepspeed_file_goes_by_its_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = load_config(recipe(tmp_path, deepspeed=name))
    assert config.train.deepspeed == name
    settings = load_deepspeed_config(config.train.deepspeed, config.train, world_size=2)
    assert settings["zero_optimization"]["stage"] == int(name[4])


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train.deepspeed names zero4, .*\(zero1, zero2, zero2_offload, zero3"):
        load_deepspeed_config("zero4", load_config(recipe(tmp_path)).train, world_size=2)
