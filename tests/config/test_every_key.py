"""Every setting of ``Config``: it can be given, and something that runs reads it."""

import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tiny_recipes import recipe
from tiny_runs import tiny_shards, tiny_tree

from pdfx.config import Config, ConfigError, dump_config, load_config, parse_config
from pdfx.config.data_sections import DataSetSection
from pdfx.config.section import Section, section_of

SECTION_FILES = {
    "config.py",
    "data_sections.py",
    "model_sections.py",
    "section.py",
    "train_sections.py",
    "ineffective.py",
}
"""Where settings are checked; reading them there is not yet an effect."""
SOUND = {"loss": 2.0, "loss_path_0": 0.5, "loss_path_1": 0.5, "loss_fused": 1.0, "grad_norm": 1.0}


def settings_of(section: type[Section], prefix: str = "") -> dict[str, tuple[type[Section], str, Any]]:
    """(section, name, type) of every setting by its key; ``model.lora.r`` as well as ``model.lora``."""
    found = {}
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not field.annotation:
            found[f"{prefix}{name}"] = (section, name, field.annotation)
        if inner is not None and inner is not DataSetSection:
            found |= settings_of(inner, f"{prefix}{name}.")
    return found


SETTINGS = settings_of(Config)
GIVEN = {
    "model.matryoshka_dims": "[8]",
    "model.lora.targets": "[q_proj]",
    "model.modules": "[a.py]",
    "train.hooks": "[a.py:Hook]",
    "model.lora": "null",
    "objective.maxsim_budgets": "[1]",
    "model.prefix.layers": "1",
    "model.prefix.length": "7",
    "inputs.image_grid_pinpoints": "[[336, 672]]",
    "evaluate.recall_at": "[3]",
    "data.evaluation": "elsewhere",
    "train.per_device_train_batch_size": "5",
    "train.peak_tflops": "12",
    "train.save_in_background": "false",
}


def another(key: str, annotation: Any, default: Any) -> str:
    """A value for an override that differs from the default."""
    if key in GIVEN:
        return GIVEN[key]
    kinds = [annotation, *get_args(annotation), *(part for kind in get_args(annotation) for part in get_args(kind))]
    if bool in kinds:
        return "false" if default is True else "true"
    if int in kinds:
        return str((default or 0) + 3)
    if float in kinds:
        return str((default or 0.5) * 0.75)
    texts = [kind for kind in kinds if isinstance(kind, str) and kind != default]
    return texts[0] if texts else "other"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict]:
    """A recipe's file, and the whole configuration that it gives."""
    path = recipe(tmp_path_factory.mktemp("base"))
    return path, yaml.safe_load(dump_config(load_config(path)))


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_takes_another_value_from_the_command_line_alone_or_is_refused_by_name(base, key):
    path, before = base
    section, name, annotation = SETTINGS[key]
    default = section.model_fields[name].get_default(call_default_factory=True)
    override = f"{key}={another(key, annotation, default)}"
    try:
        config = load_config(path, [override])
    except ConfigError as error:
        assert name in str(error)
        return
    after = yaml.safe_load(dump_config(config))
    assert before != after
    for part in key.split(".")[:-1]:
        assert {other: value for other, value in before.items() if other != part} == {
            other: value for other, value in after.items() if other != part
        }
        before, after = before[part], after[part]
    assert {other for other in before if before[other] != after[other]} == {name}


def everything(folder: Path) -> dict:
    """A recipe in which nothing is switched off."""
    data = [
        {"path": str(tiny_shards(folder / name, 12, 1)), "name": name, "weight": weight, "max_samples": 9}
        for name, weight in (("a", 1), ("b", 2))
    ]
    return tiny_tree(
        folder,
        model={"paths": 2, "cache_vision": True, "lora": {"r": 2, "targets": ["q_proj"]}, "matryoshka_dims": [8]},
        data={
            "train": data,
            "evaluation": str(tiny_shards(folder / "evaluation", 4)),
            "hard_negatives": 1,
            "num_workers": 0,
        },
        objective={"maxsim_weight": 1.0, "maxsim_budgets": [1], "distillation_weight": 1.0},
        train={
            "max_steps": 2,
            "save_steps": 1,
            "eval_steps": 1,
            "metric_for_best_model": "query_to_target/fused/recall@1",
            "profile_steps": 1,
            "chunk_tokens": 64,
        },
        guards={"zero_loss": "warn", "collapsed_paths": {"steps": 1}, "stall_seconds": 1000.0, "lost_seconds": 500.0},
    )


def read_settings(trees: list[dict]) -> set[tuple[str, str]]:
    """In a rank: (section, setting) that a run of each recipe after the other and its guards read, apart from checks of
    the recipe itself."""
    from pdfx.distributed.world import join_world
    from pdfx.faults.shutdown import watched
    from pdfx.faults.stopping import StopRequest
    from pdfx.train.hooks.guards import StepGuards
    from pdfx.train.trainer import Trainer

    read = set()

    def recording(section: Section, name: str):
        if name in type(section).__pydantic_fields__:
            frame = sys._getframe(1)
            if "/pdfx/" in frame.f_code.co_filename and (
                Path(frame.f_code.co_filename).name not in SECTION_FILES or frame.f_code.co_name == "training_sets"
            ):
                read.add((type(section).__name__, name))
        return super(Section, section).__getattribute__(name)

    configs, world = [parse_config(tree) for tree in trees], join_world()
    Section.__getattribute__ = recording
    try:
        for config in configs:
            stop = StopRequest()
            with watched(config, world, stop) as progress:
                trainer = Trainer(config, world, progress)
                trainer.run(stop)
            guards = StepGuards(config.guards, trainer.objective, lambda *_: None)
            nothing, broken = dict.fromkeys(SOUND, 0.0), dict.fromkeys(SOUND, math.nan)
            alike = SOUND | {"path_cosine_max": 1.0, "mi_negative_log_likelihood": 1e9}
            if trainer.objective.diversity.networks is None:
                del alike["mi_negative_log_likelihood"]
            for step, metrics in enumerate([nothing, alike, *[broken] * config.guards.non_finite.in_a_row], 2):
                guards.check(step, metrics)
            trainer.close()
            trainer.engine.destroy()
    finally:
        del Section.__getattribute__
    return read


def test_a_run_reads_every_setting(tmp_path, two_ranks):
    tree = everything(tmp_path)
    again = tree | {
        "train": tree["train"] | {"max_steps": None, "num_train_epochs": 3, "gradient_accumulation_steps": 2}
    }
    networks = tree | {
        "train": tree["train"] | {"output_dir": str(tmp_path / "networks")},
        "objective": {"mutual_information": {"bound": "vclub", "predictor": "network"}},
    }
    read = set.union(*two_ranks.run(read_settings, [tree, again, networks], timeout=250))
    # The inputs' settings travel as one dictionary, into the model's configuration.
    needed = {(section.__name__, name) for section, name, _ in SETTINGS.values() if section.__name__ != "InputsSection"}
    needed |= {("DataSetSection", name) for name in DataSetSection.model_fields}
    assert needed - read == set()


@pytest.mark.parametrize("key", [key for key in SETTINGS if key.startswith("inputs.")])
def test_the_inputs_settings_reach_the_models_configuration(tmp_path, key):
    from pdfx.embedder.build import embedder_settings

    _, name, annotation = SETTINGS[key]
    config = load_config(recipe(tmp_path), [f"{key}={another(key, annotation, None)}"])
    assert embedder_settings(config)["inputs"][name] != embedder_settings(load_config(recipe(tmp_path)))["inputs"][name]
