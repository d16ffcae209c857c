"""Recipes that extend another one: ``extends: base.yaml`` takes over its settings, apart from those set again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pdfx.config.recipe_file import ConfigError, read_recipe
from pdfx.config.run_files import CHECKPOINTS, MANIFEST
from pdfx.config.shipped import RECIPES, shipped_files

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
