"""Settings that cannot have an effect are named, each with its reason, and no others are."""

import json
from pathlib import Path

import pytest
from tiny_recipes import recipe
from tiny_runs import tiny_shards

from pdfx.config import Config, dump_config, load_config
from pdfx.data.training_sets import hard_negatives_notes, open_training_sets
from pdfx.train.ineffective import settings_without_effect
from pdfx.train.schedule import learning_rate_factor, settle_warm_ups

ROOT = Path(__file__).parents[2]
STEPS, RANKS = 60, 2
CASES = [
    # (settings without an effect, the reason, what makes them have one)
    (["model.prefix.init_std=1"], "belongs to model.prefix.init 'normal'", ["model.prefix.init=normal"]),
    (["model.cache_vision_gigabytes=2"], "model.cache_vision is off", ["model.cache_vision=true"]),
    (["model.cache_vision_file=/tmp/x"], "model.cache_vision is off", ["model.cache_vision=true"]),
    (
        ["model.fusion=softmax", "objective.diversity=orthogonality", "objective.diversity_weight=2"],
        "model.paths is 1",
        ["model.paths=2"],
    ),
    (["guards.collapsed_paths.action=stop", "guards.collapsed_paths.steps=9"], "model.paths is 1", ["model.paths=2"]),
    (["objective.distillation_weight=1"], "model.paths is 1", ["model.paths=2"]),
    (["objective.maxsim_budgets=[1]"], "objective.maxsim_weight is 0", ["objective.maxsim_weight=1"]),
    (["train.chunk_paths=4"], "not below model.paths", ["model.paths=5"]),
    (["objective.diversity_weight=0.5"], "objective.diversity is 'none'", ["objective.diversity=orthogonality"]),
    (["objective.diversity_side=query"], "objective.diversity is 'none'", ["objective.diversity=hsic"]),
    (["objective.diversity_pairs=9"], "there are no more pairs of paths", ["model.paths=8"]),
    (
        ["objective.mutual_information.bound=vclub"],
        "no mutual information is estimated",
        ["objective.diversity=mutual_information"],
    ),
    (
        ["objective.mutual_information.hidden=9", "guards.variational.bound=3"],
        "there are no variational networks",
        ["objective.mutual_information.predictor=network", "objective.mutual_information.bound=vclub"],
    ),
    (["objective.recent.share=0.5"], "the pairs of a step alone", ["objective.diversity=cross_correlation"]),
    (["guards.variational.resets=1"], "guards.variational.action is 'stop'", ["guards.variational.action=reset"]),
    (
        ["guards.non_finite.in_a_row=2", "guards.non_finite.roll_backs=1"],
        "guards.non_finite.action is 'stop'",
        ["guards.non_finite.action=skip"],
    ),
    (["guards.collapsed_paths.cosine=0.5"], "that guard is off", ["guards.collapsed_paths.action=warn"]),
    (["train.gradient_reduction=chunk"], "a step is a single pass", ["train.gradient_accumulation_steps=2"]),
    (
        ["train.greater_is_better=false"],
        "train.metric_for_best_model is not set",
        ["train.metric_for_best_model=x", "train.save_steps=6", "train.eval_steps=3"],
    ),
    (["train.resume_elastic=true"], "train.resume is 'never'", ["train.resume=auto"]),
    (["data.mixture_temperature=2", "data.sub_batch_pairs=8"], "there is a single data set", ["data.train=[a, b]"]),
    (["data.prefetch_batches=2"], "data.num_workers is 0", ["data.num_workers=1"]),
    (["data.read_threads=2", "data.cache_dir=/tmp/x"], "all data is in local folders", ["data.train=s3://a/b"]),
    (["data.read_threads=2"], "all data is in local folders", ["data.evaluation=[a, https://a/b]"]),
    (["data.cache_gigabytes=2"], "data.cache_dir is not set", ["data.cache_dir=/tmp/x"]),
    (["data.read_retry_seconds=2"], "data.read_retries is 0", ["data.read_retries=1"]),
    (["evaluate.batch_size=2", "evaluate.recall_at=[2]"], "data.evaluation is not set", ["data.evaluation=x"]),
    (["train.warmup_steps=61"], "the learning rate never rises", ["train.max_steps=61"]),
    (["train.logging_steps=61"], "only the last step is logged", ["train.max_steps=61"]),
    (["train.save_steps=61"], "only the last step is saved", ["train.max_steps=61"]),
    (["train.save_steps=50", "train.keep_steps=100"], "it keeps no checkpoint", ["train.max_steps=100"]),
    (
        ["data.evaluation=x", "train.eval_steps=70"],
        "the only evaluation is after the last step",
        ["train.max_steps=70"],
    ),
    (["train.profile_steps=61"], "the profile ends with the run", ["train.max_steps=61"]),
    (["guards.agreement_steps=61"], "compared at the start only", ["train.max_steps=61"]),
    (["guards.collapsed_paths.steps=61"], "that guard never acts", ["train.max_steps=61"]),
    (["guards.non_finite.in_a_row=61"], "that guard never acts", ["train.max_steps=61"]),
    (["guards.non_finite.in_window=61"], "that guard never acts", ["train.max_steps=61"]),
]
SETTING = {
    "model.paths is 1": ["model.paths=1"],
    "objective.diversity is 'none'": ["objective.diversity=none"],
    "no mutual information is estimated": ["objective.diversity=orthogonality"],
    "the pairs of a step alone": ["objective.diversity=orthogonality"],
    "guards.variational.action is 'stop'": [
        "guards.variational.action=stop",
        "objective.mutual_information.predictor=network",
        "objective.mutual_information.bound=vclub",
    ],
    "guards.non_finite.action is 'stop'": ["guards.non_finite.action=stop"],
    "that guard is off": ["guards.collapsed_paths.action=off"],
    "train.resume is 'never'": ["train.resume=never"],
    "data.num_workers is 0": ["data.num_workers=0"],
    "data.cache_dir is not set": ["data.train=s3://a/b"],
    "data.read_retries is 0": ["data.train=s3://a/b", "data.read_retries=0"],
}
"""What a recipe must say beside them for the settings to have no effect."""


def told(folder: Path, overrides: list[str]) -> tuple[Config, list[str]]:
    last = {override.partition("=")[0]: override for override in [f"train.max_steps={STEPS}", *overrides]}
    config = load_config(recipe(folder), list(last.values()))
    return config, settings_without_effect(config, config.train.max_steps, RANKS)


@pytest.mark.parametrize(
    ("settings", "reason", "cure"), CASES, ids=lambda value: value[0] if isinstance(value, list) else None
)
def test_a_setting_without_effect_is_named_once_with_its_reason_until_the_reason_is_gone(
    tmp_path, settings, reason, cure
):
    around = SETTING.get(reason, [])
    _, sentences = told(tmp_path, [*around, *settings])
    found = [sentence for sentence in sentences if reason in sentence]
    assert len(found) == 1 and found[0].startswith("Warning: ")
    named = [
        setting.partition("=")[0]
        for setting in settings
        if setting.partition("=")[0] not in ("data.evaluation", "train.save_steps") or len(settings) == 1
    ]
    assert all(key in found[0] for key in named), found
    _, after = told(tmp_path, [*around, *settings, *cure])
    assert not any(reason in sentence for sentence in after), after
    _, plain = told(tmp_path, around)
    assert not any(key in sentence for key in named for sentence in plain), plain


def test_a_local_folder_has_no_revision(tmp_path):
    (tmp_path / "model").mkdir()
    assert (
        "model.revision has no effect"
        in told(tmp_path, ["model.revision=abc", f"model.path={tmp_path / 'model'}"])[1][0]
    )
    assert told(tmp_path, ["model.revision=abc", "model.path=a/b"])[1] == []
    config, _ = told(tmp_path, ["guards.lost_seconds=30"])
    assert settings_without_effect(config, STEPS, 2) == [] and len(settings_without_effect(config, STEPS, 1)) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "launch/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_and_the_configuration_that_its_run_keeps_say_nothing_in_vain(path, tmp_path):
    config = load_config(path)
    assert settings_without_effect(config, config.train.max_steps, RANKS) == []
    settle_warm_ups(config, config.train.max_steps)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert settings_without_effect(load_config(tmp_path / "config.yaml"), config.train.max_steps, RANKS) == []


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (60, 6), (999, 99), (2000, 100), (100_000, 100)])
def test_a_warm_up_that_is_left_open_ends_within_the_run(tmp_path, steps, warmup):
    config, _ = told(tmp_path, [f"train.max_steps={steps}"])
    assert f"warm-up of {warmup} steps" in settle_warm_ups(config, steps)[0]
    assert config.train.warmup_steps == warmup
    assert max(learning_rate_factor(step, config.train, steps) for step in range(1, min(steps, 200) + 1)) == 1
    config, _ = told(tmp_path, ["train.warmup_steps=0"])
    settle_warm_ups(config, steps)
    assert config.train.warmup_steps == 0


def negatives_told(wanted: int | None, *shards: Path) -> list[str]:
    config = Config.model_validate(
        {
            "model": {"path": "x"},
            "data": {
                "train": [{"path": str(path), "name": path.parent.name} for path in shards],
                "hard_negatives": wanted,
            },
            "train": {"output_dir": "x", "deepspeed": "x", "max_steps": 1, "per_device_train_batch_size": 1},
        }
    )
    return hard_negatives_notes(open_training_sets(config.data), config.data)


def test_hard_negatives_that_are_there_are_used_or_said_to_be_left_out(tmp_path):
    none, two = (
        tiny_shards(tmp_path / name, samples=12, hard_negatives=count, with_picture=lambda i: False)
        for name, count in (("none", 0), ("two", 2))
    )
    assert (
        negatives_told(None, none) == []
        and negatives_told(0, two) == []
        and negatives_told(2, two) == []
        and negatives_told(1, two) == []
    )
    (sentence,) = negatives_told(None, none, two)
    assert "not used, though there are some in two (2 per sample)" in sentence and "or to 0" in sentence
    (sentence,) = negatives_told(3, two)
    assert "two holds 2 per sample, so 33% of their places are masked" in sentence
    assert "none holds 0 per sample, so 100%" in negatives_told(1, none, two)[0]
    for text in ("{}", "[", json.dumps({"negatives_items": "x"})):
        for path in two.glob("*_stats.json"):
            path.write_text(text)
        assert negatives_told(None, two) == []


def test_a_run_that_can_hardly_move_a_weight_says_so(tmp_path):
    config, _ = told(tmp_path, [])
    (_, warning) = settle_warm_ups(config, STEPS)
    assert (
        "all 60 steps together move a weight by about 0.0006 at most" in warning
        and "raise train.learning_rate" in warning
    )
    for settings in (["train.learning_rate=1e-4"], ["train.max_steps=2000"]):
        config, _ = told(tmp_path, settings)
        assert len(settle_warm_ups(config, config.train.max_steps)) == 1
