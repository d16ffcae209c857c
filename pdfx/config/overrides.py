"""Settings that are changed on the command line as ``section.key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from pdfx.config.recipe_file import ConfigError, parse_yaml
from pdfx.config.section import annotation_of, section_of


def apply_overrides(tree: dict, overrides: Sequence[str], config: type[BaseModel]) -> None:
    """Write the overrides' values into a recipe's tree, in place.

    Raises:
        ConfigError: one has not the form ``section.key=value``, goes through a value, is not YAML although it must be,
            or sets what another one sets too.
    """
    given: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"The override '{override}' must have the form section.key=value.")
        for other in given:
            if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                raise ConfigError(f"The overrides '{given[other]}' and '{override}' set the same; give one of them.")
        given[key] = override
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(
                    f"The override '{override}' goes through '{parent}', which is a value and not a section."
                )
        node[last] = value_of(key, text, annotation_of(config, key.split(".")))


def value_of(key: str, text: str, annotation: Any) -> Any:
    """What an override's text says for a setting of that type.

    ``null``, or nothing, is null if the setting may be null; ``[...]`` and ``{...}`` are YAML if it may be a list or a
    section. Everything else is the text as it stands, from which the section makes a number or a truth value if that is
    what it wants.

    Raises:
        ConfigError: a list or a section is not YAML.
    """
    kinds = (annotation, *get_args(annotation))
    if text in ("", "null") and NoneType in kinds:
        return None
    several = any(get_origin(kind) in (list, tuple) for kind in kinds) or section_of(annotation) is not None
    if not several or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The value of the override of '{key}' is not valid YAML: {' '.join(str(error).split())}."
        ) from None
