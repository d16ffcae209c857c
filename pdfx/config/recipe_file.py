"""Reading a recipe: its YAML, what it extends, and what the command line overrides."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from pdfx.config.run_files import CHECKPOINTS, MANIFEST, RECIPES, shipped_files
from pdfx.config.section import annotation_of, section_of
from pdfx.host.urls import scrubbed

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Keys and values of a recipe, those counted again that an alias repeats; a long text counts as one per 100
characters."""
MAX_DEPTH = 30


class ConfigError(ValueError):
    """A mistake in a recipe or an override, in one sentence without the secrets of URLs."""

    def __init__(self, message: str):
        super().__init__(scrubbed(message))


class RecipeLoader(yaml.SafeLoader):
    """Plain values stay text, apart from ``null``. YAML 1.1 would read ``010`` as 8, ``1:30`` as 90, ``no`` as false
    and ``1e-4`` as text, also as names."""

    yaml_implicit_resolvers: dict = {}

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent, index):
        """Raises a ComposerError, before anything is built, if it is nested too deeply or too large."""
        event, before = self.peek_event(), self.values
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"it nests more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self.values += 1 + len(node.value) // 100
            self.sizes[id(node)] = self.values - before
        elif id(node) in self.sizes:
            self.values += self.sizes[id(node)]
        else:
            self.refuse(f"'&{event.anchor}' contains itself", event)
        if self.values > MAX_VALUES:
            self.refuse(f"it has more than {MAX_VALUES:,} values, counting those that its aliases repeat", event)
        return node

    def compose_mapping_node(self, anchor):
        """Raises a ComposerError if a key is given twice; what a merge (``<<``) brings may be overridden."""
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the key '{key.value}' is given twice, in line {lines[key.value]} and in line {line}; keep one",
                )
            lines[key.value if isinstance(key, yaml.ScalarNode) else id(key)] = line
        return node

    def refuse(self, why: str, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        raise yaml.composer.ComposerError(None, None, f"{why} (line {line})")


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def parse_yaml(text: str):
    """The value of a YAML document, in which all scalars but null are text. Raises yaml.YAMLError."""
    return yaml.load(text, RecipeLoader)


def read_small(path: Path) -> str:
    """The text of a regular file of at most ``MAX_BYTES``. Raises OSError, or ValueError if it is something else."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return content.decode("utf-8")


def read_recipe(path: Path, why: str = "") -> dict:
    """The sections of one recipe's file. Raises ConfigError, which says ``why`` it is read if it is missing."""
    try:
        tree = parse_yaml(read_small(path))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe at {path}{why and f', {why}'}.") from None
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a valid recipe: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} must hold sections such as 'model:' and 'train:', not "
            f"{'nothing' if tree is None else type(tree).__name__}."
        )
    return tree


EXTENDS = "extends"
MAX_FILES = 5
"""Of one recipe, itself included."""


def read_extended(path: Path) -> tuple[dict, str]:
    """A recipe's settings with those of all recipes that it extends, and what messages call it.

    A section is merged key by key; any other value (a list, ``null``) takes the place of the extended recipe's. In a
    run's or a checkpoint's own ``config.yaml``, ``model.trust_remote_code`` does not count.

    Raises:
        ConfigError: a file cannot be read, recipes extend one another in a circle, or there are more than
            ``MAX_FILES``.
    """
    tree: dict = {}
    files: list[Path] = []
    following: Path | None = path
    while following is not None:
        if any(os.path.realpath(following) == os.path.realpath(file) for file in files):
            raise ConfigError(f"{_chain([*files, following])}: a circle. Remove one '{EXTENDS}'.")
        files.append(following)
        if len(files) > MAX_FILES:
            raise ConfigError(f"{_chain(files)}: more than {MAX_FILES} files. Extend a recipe that needs fewer.")
        layer = read_recipe(following, f"extended by {files[-2]}" if files[1:] else "")
        following = _extended(layer, following)
        tree = _merged(layer, tree)
    return tree, _chain(files)


def _extended(layer: dict, path: Path) -> Path | None:
    """The file that a recipe extends; takes the key out of ``layer``."""
    kept_by_a_run = (path.parent / CHECKPOINTS).is_dir() or (path.parent / MANIFEST).is_file()
    if kept_by_a_run and isinstance(layer.get("model"), dict):
        # What a run left is data and gives no consent. The user who starts a command does.
        layer["model"]["trust_remote_code"] = False
    if EXTENDS not in layer:
        return None
    name = layer.pop(EXTENDS)
    if kept_by_a_run:
        raise ConfigError(f"{path} is a run's resolved configuration, which extends nothing; remove '{EXTENDS}'.")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{path}: '{EXTENDS}' must be one file or the name of a shipped recipe.")
    if name.endswith((".yaml", ".yml")):
        return path.parent / os.path.expanduser(name)
    shipped = shipped_files(RECIPES)
    if name not in shipped:
        raise ConfigError(
            f"{path}: '{EXTENDS}' is '{name}', which is neither a file (its name must end in '.yaml') nor a shipped "
            f"recipe ({', '.join(shipped)})."
        )
    return shipped[name]


def _merged(under: Any, over: Any) -> Any:
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merged(under[key], value) if key in under else value for key, value in over.items()}}


def _chain(files: list[Path]) -> str:
    return ", which extends ".join(map(str, files))


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
