"""Settings of a recipe that cannot have an effect in its run: said once at the start, and in a dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from pdfx.config import Config
from pdfx.config.deepspeed_file import unused_keys
from pdfx.config.section import Section
from pdfx.data.training_sets import TrainingSet, hard_negatives_notes
from pdfx.host.urls import is_url


def settings_notes(config: Config, sets: list[TrainingSet], steps: int, ranks: int) -> list[str]:
    """All there is to say at the start about settings that are not used, or not fully."""
    return (
        settings_without_effect(config, steps, ranks)
        + unused_keys(config.train.deepspeed)
        + hard_negatives_notes(sets, config.data)
    )


def settings_without_effect(config: Config, steps: int, ranks: int) -> list[str]:
    """A sentence per reason, which names the settings that the recipe changes from their defaults and that nothing in
    the run depends on.

    Args:
        steps: of the whole run.
        ranks: the run's processes.
    """
    changed = {key: value for key, value, default in leaves(config) if value != default}
    reasons: dict[str, list[str]] = {}
    for patterns, (condition, reason) in TABLE:
        found = [
            key
            for key in changed
            if any(fnmatchcase(key, pattern) for pattern in patterns.split())
            and not any(key in keys for keys in reasons.values())
        ]
        if found and condition(config, steps, ranks):
            reasons.setdefault(reason, []).extend(found)
    return [
        f"Warning: {' and '.join(keys)} {'have' if len(keys) > 1 else 'has'} no effect: {reason}."
        for reason, keys in reasons.items()
    ] + [
        f"Warning: {key} is {value} and the run has {steps} step{'s' if steps > 1 else ''}, so {reason}."
        for key, reason in TOO_LATE.items()
        if (value := changed.get(key)) is not None
        and value > steps
        and not any(key in keys for keys in reasons.values())
    ]


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, default) of every setting, the value itself if there is no default; lists are not walked."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", value, value if default is PydanticUndefined else default


def is_local(config: Config, *_: int) -> bool:
    named = config.data.evaluation or []
    sets = [own.path for own in config.data.training_sets()]
    return not any(map(is_url, [*sets, *([named] if isinstance(named, str) else named)]))


def has_no_information(config: Config, *_: int) -> bool:
    return config.objective.diversity != "mutual_information" or config.model.paths == 1


def has_no_networks(config: Config, *_: int) -> bool:
    return has_no_information(config) or config.objective.mutual_information.predictor != "network"


def has_no_moments(config: Config, *_: int) -> bool:
    term, bound = config.objective.diversity, config.objective.mutual_information.bound
    return term != "cross_correlation" and (term != "mutual_information" or bound != "gaussian")


def has_one_pass(config: Config, *_: int) -> bool:
    train, paths = config.train, config.model.paths
    one_chunk = train.gradient_accumulation_steps == 1 and train.chunk_tokens is None
    return one_chunk and (train.chunk_paths or paths) >= paths


Condition = Callable[[Config, int, int], bool]


def _is(key: str, value: Any) -> tuple[Condition, str]:
    """The condition that a setting has a value, and that in words."""
    words = "not set" if value is None else "off" if value is False else repr(value)
    return lambda config, *_: attrgetter(key)(config) == value, f"{key} is {words}"


TABLE: list[tuple[str, tuple[Condition, str]]] = [
    ("model.revision", (lambda c, *_: Path(c.model.path).is_dir(), "model.path is a local folder")),
    ("model.prefix.layers model.prefix.init* model.prefix.learning_rate", _is("model.prefix.length", 0)),
    ("model.prefix.init_std", (_is("model.prefix.init", "tokens")[0], "it belongs to model.prefix.init 'normal'")),
    (
        "model.fusion objective.distillation_weight objective.diversity* objective.mutual_information.* "
        "objective.recent.* guards.collapsed_paths.*",
        _is("model.paths", 1),
    ),
    ("objective.maxsim_budgets", _is("objective.maxsim_weight", 0)),
    ("train.chunk_paths", (lambda c, *_: c.train.chunk_paths >= c.model.paths, "it is not below model.paths")),
    ("model.cache_vision_gigabytes model.cache_vision_file", _is("model.cache_vision", False)),
    (
        "objective.diversity_weight objective.diversity_side objective.diversity_scope objective.diversity_pairs",
        _is("objective.diversity", "none"),
    ),
    (
        "objective.diversity_pairs",
        (
            lambda c, *_: c.objective.diversity_pairs >= c.model.paths * (c.model.paths - 1) // 2,
            "there are no more pairs of paths",
        ),
    ),
    ("objective.mutual_information.*", (has_no_information, "no mutual information is estimated")),
    (
        "objective.mutual_information.hidden objective.mutual_information.steps "
        "objective.mutual_information.learning_rate guards.variational.*",
        (has_no_networks, "there are no variational networks (objective.mutual_information.predictor)"),
    ),
    ("objective.recent.share", (has_no_moments, "the diversity term looks at the pairs of a step alone")),
    ("guards.variational.resets", _is("guards.variational.action", "stop")),
    ("guards.non_finite.*_*", _is("guards.non_finite.action", "stop")),
    (
        "guards.collapsed_paths.cosine guards.collapsed_paths.r2 guards.collapsed_paths.steps",
        (_is("guards.collapsed_paths.action", "off")[0], "that guard is off"),
    ),
    (
        "guards.agreement_steps guards.lost_seconds",
        (lambda _, __, ranks: ranks == 1, "one process has none to compare itself with"),
    ),
    ("train.gradient_reduction", (has_one_pass, "a step is a single pass")),
    ("train.greater_is_better", _is("train.metric_for_best_model", None)),
    ("train.resume_elastic", _is("train.resume", "never")),
    (
        "data.mixture_temperature data.sub_batch_pairs",
        (lambda c, *_: len(c.data.training_sets()) == 1, "there is a single data set"),
    ),
    ("data.prefetch_batches", _is("data.num_workers", 0)),
    ("data.read_* data.cache_dir data.cache_gigabytes", (is_local, "all data is in local folders")),
    ("data.cache_gigabytes", _is("data.cache_dir", None)),
    ("data.read_retry_seconds", _is("data.read_retries", 0)),
    ("evaluate.*", _is("data.evaluation", None)),
]
"""Patterns of settings, the condition under which they have no effect, and the reason."""

TOO_LATE = {
    "train.warmup_steps": "the learning rate never rises to its full value; lower it, or leave it out",
    "train.logging_steps": "only the last step is logged",
    "train.save_steps": "only the last step is saved",
    "train.keep_steps": "it keeps no checkpoint",
    "train.eval_steps": "the only evaluation is after the last step",
    "train.profile_steps": "the profile ends with the run",
    "guards.collapsed_paths.steps": "that guard never acts",
    "guards.non_finite.in_a_row": "that guard never acts",
    "guards.non_finite.in_window": "that guard never acts",
    "guards.agreement_steps": "the ranks are compared at the start only",
}
"""Numbers of steps, and what follows if the run has fewer."""
