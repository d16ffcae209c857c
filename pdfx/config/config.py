"""The configuration of a run: strict sections, and sentences about mistakes, which name the nearest known key."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from pdfx.config.data_sections import DataSection
from pdfx.config.model_sections import InputsSection, ModelSection
from pdfx.config.objective_sections import ObjectiveSection
from pdfx.config.recipe_file import ConfigError, apply_overrides, read_extended
from pdfx.config.section import Section, annotation_of, section_of
from pdfx.config.train_sections import GuardsSection, TrainSection
from pdfx.errors import nearest
from pdfx.host.urls import scrubbed


class EvaluateSection(Section):
    batch_size: int = Field(32, ge=1)
    recall_at: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10], min_length=1)
    max_corrupt_share: float = Field(0.01, ge=0, le=1)
    keep_embeddings: bool = False
    """Write what the evaluation after the last step embeds into the folder ``evaluation`` of the run, one safetensors
    file per data set."""


class Config(Section):
    """A whole recipe."""

    model: ModelSection
    inputs: InputsSection = InputsSection()
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection
    guards: GuardsSection = GuardsSection()
    evaluate: EvaluateSection = EvaluateSection()


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a recipe and what it extends, and apply overrides.

    In a run's or a checkpoint's own ``config.yaml``, ``model.trust_remote_code`` does not count; as an override it
    does.

    Args:
        path: of a YAML file with the sections of ``Config``; ``extends`` in it names another one.
        overrides: ``section.key=value`` each, as on the command line; a value is text, a number, ``null``, or a list or
            section in YAML's braces.

    Returns:
        The recipe, complete and validated: what it does not set has its default value.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown (the nearest is named) or given twice, or a
            value does not fit.

    Example:
        >>> import pdfx
        >>> config = pdfx.load_config("recipe.yaml", ["train.learning_rate=1e-4", "model.lora=null"])
        >>> config.train.learning_rate, config.model.lora, config.model.pooling
        (0.0001, None, 'last')
        >>> pdfx.load_config("recipe.yaml", ["model.poling=mean"])
        Traceback (most recent call last):
        pdfx.config.recipe_file.ConfigError: recipe.yaml: unknown key 'model.poling'; did you mean 'model.pooling'?
    """
    tree, source = read_extended(Path(path))
    apply_overrides(tree, overrides, Config)
    return parse_config(tree, source)


def parse_config(tree: dict, source: str = "the configuration") -> Config:
    """Validate a tree of plain values. Raises ConfigError with one sentence per mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        items = error.errors(include_url=False)[:20]
        raise ConfigError(
            " ".join(_sentence(item, source) for item in items if not any(_explains(other, item) for other in items))
        ) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, which ``load_config`` reads back, without the secrets in the URLs of data."""
    return yaml.safe_dump(shown_settings(config), sort_keys=False, allow_unicode=True)


def shown_settings(config: Config) -> dict:
    """The resolved configuration as plain values, without the passwords and signatures in the URLs of data."""
    tree = config.model_dump(mode="json")
    return {**tree, "data": scrubbed(tree["data"])}


def _sentence(item: ErrorDetails, source: str) -> str:
    key = ".".join(_key(item))
    if item["type"] == "extra_forbidden":
        close = nearest(_key(item)[-1], _fields(_key(item)[:-1]))
        hint = f"did you mean '{'.'.join([*_key(item)[:-1], close])}'?" if close else "it takes no keys here."
        return f"{source}: unknown key '{key}'; {hint}"
    if item["type"] == "missing":
        return f"{source}: the key '{key}' is missing."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{source}: in '{key}', {message}."
    value = item["input"] if item["type"].startswith(("greater_", "less_")) else _SHORT.repr(item["input"])
    return f"{source}: '{key or 'the recipe'}' is {value}: {message}."


def _explains(other: ErrorDetails, item: ErrorDetails) -> bool:
    """Whether ``item`` is about one type of a union, and ``other`` says what is wrong with it as another one."""
    key = _key(item)
    return _key(other)[: len(key)] == key and (len(_key(other)), other["type"] == "value_error") > (
        len(key),
        item["type"] == "value_error",
    )


def _key(item: ErrorDetails) -> tuple[str, ...]:
    """The setting that a mistake is about: its place without numbers in lists and members of unions."""
    key: tuple[str, ...] = ()
    for part in item["loc"]:
        key += (str(part),) if part in _fields(key) else ()
    return (*key, str(item["loc"][-1])[:100]) if item["type"] == "extra_forbidden" else key


def _fields(key: tuple[str, ...]) -> list[str]:
    return list(getattr(section_of(annotation_of(Config, key)), "model_fields", ()))


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
