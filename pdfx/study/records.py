"""What remains of a run: a JSON file of figures, and a NumPy file of the rank of every query's first right answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pdfx.config import Config, shown_settings
from pdfx.errors import UserError
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.kept import FOLDER, read_items
from pdfx.evaluate.metrics import path_figures, relevant_ranks, similarity
from pdfx.evaluate.retrieval import DIRECTIONS, directions_of
from pdfx.host.files import write_atomically, write_json
from pdfx.host.reading import read_json

FUSED = "fused"
Items = dict[str, tuple[EmbeddedItems, EmbeddedItems]]
"""Queries and targets by test set."""


@dataclass(frozen=True)
class Record:
    """What a study keeps of one run.

    Attributes:
        facts: plain values: ``row``, ``seed``, ``settings`` (of an ensemble its members' names), ``steps``, ``flops``
            (of the model in training), ``seconds`` (of training), ``paths`` with the figures about its paths by test
            set, and, if its number of steps follows from a budget, ``budget``, the settings of the budget's row.
        ranks: uint16 [n] by ``SET/DIRECTION/SCORE``, and ``SET/DIRECTION/items``, which query belongs to which item.
    """

    facts: dict[str, Any]
    ranks: dict[str, np.ndarray]

    def write(self, folder: Path, name: str) -> None:
        """The figures last: a record without them does not count."""
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / f"{name}.npz") as stream:
            np.savez_compressed(stream, allow_pickle=False, **self.ranks)
        write_json(self.facts, folder / f"{name}.json")


def read_record(folder: Path, name: str) -> Record | None:
    """The record of a run, or None if there is none yet. Raises UserError if it is damaged."""
    if not (folder / f"{name}.json").is_file():
        return None
    try:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return Record(read_json(folder / f"{name}.json"), dict(arrays))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The record {folder / name}.json and .npz cannot be read: {error}; delete both to run it again."
        ) from None


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide what a run learns and is measured on, as plain values."""
    tree = shown_settings(config)
    tree["train"].pop("output_dir")
    tree["model"].pop("cache_vision_file")
    return tree


def changed_setting(recorded: dict[str, Any], config: Config) -> str | None:
    """The first setting that differs from those of a record, with both values; None if there is none.

    Settings that are newer than the record count as different unless they have their default value.
    """
    before, now = flat(recorded), flat(settings_of(config))
    chosen = flat(config.model_dump(mode="json", exclude_defaults=True))
    for key in sorted(before.keys() | now.keys()):
        if (key in before or key in chosen) and before.get(key) != now.get(key):
            return f"{key} = {before.get(key)!r}, and not {now.get(key)!r}"
    return None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def read_embeddings(run: Path) -> Items:
    """What a run keeps of its evaluation by test set. Raises UserError if there is nothing."""
    files = sorted((run / FOLDER).glob("*.safetensors"))
    if not files:
        raise UserError(f"{run} has no embeddings of an evaluation; the recipe of a study needs data.evaluation.")
    return {file.stem: read_items(file) for file in files}


def measure(items: Items) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The ranks of a ``Record``, and the figures about paths by test set (none of a single path)."""
    ranks, paths = {}, {}
    for name, (queries, targets) in items.items():
        for direction in directions_of(queries, targets):
            asking, answering = (queries, targets) if direction == DIRECTIONS[0] else (targets, queries)
            if asking.candidates is not None:
                raise UserError(f"The test set {name} gives queries candidates of their own, which studies do not use.")
            right = asking.ids[:, None] == answering.ids
            for (score, rows), (_, others) in zip(asking.scores(), answering.scores(), strict=True):
                ranks[f"{name}/{direction}/{score}"] = first_ranks(similarity(rows, others), right)
            ranks[f"{name}/{direction}/items"] = asking.ids.unique(return_inverse=True)[1].numpy().astype(np.uint16)
        if queries.paths.shape[1] > 1:
            sides = [path_figures(side.paths) for side in (queries, targets)]
            paths[name] = {key: (value + sides[1][key]) / 2 for key, value in sides[0].items()}
    return ranks, paths


def first_ranks(scores: Tensor, right: Tensor) -> np.ndarray:
    """The rank of the best right answer, from 1, ties against the model: uint16 [n] of scores [n, m]; 0 if there is
    none."""
    return relevant_ranks(scores, right)[:, 0].numpy().astype(np.uint16)


def together(members: list[Items]) -> Items:
    """Several models as one, whose score is the mean of their fused scores: their fused embeddings side by side."""
    found = {}
    for name in members[0]:
        sides = []
        for side in (0, 1):
            every = [member[name][side] for member in members]
            joined = functional.normalize(torch.cat([items.fused for items in every], dim=1), dim=1)
            sides.append(EmbeddedItems(joined[:, None], joined, every[0].ids, every[0].samples))
        found[name] = (sides[0], sides[1])
    return found
