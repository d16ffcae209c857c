"""A study as its file describes it: rows of settings, seeds, and what makes the rows comparable."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pdfx.config.recipe_file import read_recipe
from pdfx.config.section import LocalPath, Section
from pdfx.data.schema import explain
from pdfx.errors import UserError, nearest

Equal = Literal["steps", "flops", "wall"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}\Z"
"""Of a row; it becomes part of file names."""


class RowSection(Section):
    """One row of a study's table: the recipe with other settings, or several runs of another row together."""

    about: str = ""
    """What it is, in a few words; the row's name if empty."""
    settings: dict[str, Any] = {}
    """``section.key: value``, as on the command line."""
    equal: Equal | None = None
    """What the row has in common with the budget's row; the study's ``equal`` if null."""
    share: float = Field(1.0, gt=0)
    """The part of the budget that it gets, if ``equal`` is ``flops`` or ``wall``."""
    ensemble_of: str | None = None
    """A row whose runs with ``members`` different seeds are used together: their scores are averaged."""
    members: int = Field(1, ge=1)

    @model_validator(mode="after")
    def check(self):
        if self.ensemble_of is not None and (self.settings or self.equal or self.share != 1):
            raise ValueError("ensemble_of takes the runs of another row as they are; remove settings, equal and share")
        if (self.members > 1) != (self.ensemble_of is not None):
            raise ValueError("an ensemble needs ensemble_of, a row, and members of 2 or more")
        return self


class StudySection(Section):
    """The file of a study; ``docs/studies.md`` explains it by an example."""

    title: str = ""
    recipe: LocalPath
    out: LocalPath
    """Where runs, logs and, unless ``records`` is set, records go."""
    records: LocalPath | None = None
    """What remains of each run: figures, and the rank of every query's first right answer."""
    seeds: list[int] = Field([1, 2, 3, 4, 5], min_length=1)
    rows: dict[str, RowSection] = Field(min_length=1)
    baselines: list[str] = Field(min_length=1)
    """The rows that all others are compared with."""
    equal: Equal = "steps"
    budget: str | None = None
    """The row whose FLOPs or seconds the others get; the first baseline if null."""
    probe_steps: int = Field(4, ge=2)
    """Steps of the short runs that measure what a step of a row costs."""
    metric: Literal["mrr", "recall@1", "recall@10"] = "mrr"
    bootstraps: int = Field(10_000, ge=100)
    discussion: str = ""
    """Markdown below the table."""

    @model_validator(mode="after")
    def check(self):
        for name in [*self.baselines, *([self.budget] if self.budget else [])]:
            self._require(name, "baselines and budget name rows")
        for name, row in self.rows.items():
            if row.ensemble_of is not None:
                self._require(row.ensemble_of, f"rows.{name}.ensemble_of names a row")
                if self.rows[row.ensemble_of].ensemble_of is not None:
                    raise ValueError(
                        f"rows.{name} is an ensemble of the ensemble '{row.ensemble_of}'; name another row"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds holds one twice")
        return self

    def _require(self, name: str, what: str) -> None:
        if name not in self.rows:
            raise ValueError(f"{what}, and there is no row '{name}'; did you mean '{nearest(name, self.rows)}'?")

    @property
    def record_folder(self) -> Path:
        return Path(self.records or f"{self.out}/records")

    @property
    def budget_row(self) -> str:
        return self.budget or self.baselines[0]

    def equal_of(self, row: str) -> Equal:
        """What a row has in common with the budget's row, which itself keeps the steps of its settings."""
        return "steps" if row == self.budget_row else self.rows[row].equal or self.equal


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"


def read_study(path: Path) -> StudySection:
    """The study that a YAML file describes.

    Raises:
        ConfigError: the file cannot be read.
        UserError: a key is unknown or missing, or a value does not fit; the sentence names it.
    """
    tree = read_recipe(path, "which should describe a study")
    try:
        study = StudySection.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error).removesuffix('.')}.") from None
    wrong = next((name for name in study.rows if not re.match(NAME, name)), None)
    if wrong is not None:
        raise UserError(f"{path}: the row '{wrong}' needs a name of at most 40 letters, digits, '_', '.' and '-'.")
    return study


def overrides(settings: dict[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def planned_runs(study: StudySection) -> list[Planned]:
    """All runs, those of the first seed first, so that a study that is cut short still has whole rows.

    Member m of an ensemble at one seed is the run of its row at ``seed + 1000 m``; member 0 is the row's own run.
    """
    runs = []
    for seed in study.seeds:
        for name, row in study.rows.items():
            if row.ensemble_of is None:
                runs.append(Planned(name, seed))
            else:
                runs += members_of(row, seed)
    return list(dict.fromkeys(runs))


def members_of(row: RowSection, seed: int) -> list[Planned]:
    """The runs that an ensemble uses at a seed."""
    return [Planned(row.ensemble_of or "", seed + 1000 * member) for member in range(row.members)]
