"""The page of a study: rows, their differences from the baselines, and a figure of these, as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pdfx.evaluate.figures import draw, finish, render
from pdfx.host.files import write_atomically
from pdfx.host.html import render_page
from pdfx.study.comparison import LEVEL, SINGLE, Difference, differences, tests_of, values
from pdfx.study.plan import StudySection
from pdfx.study.records import FUSED, Record, read_record

Rows = dict[str, dict[int, Record]]
"""Records by row and seed."""
Found = dict[tuple[str, str], Difference]
"""By row and test set."""

READING = (
    "Metric: {metric} among all answers of a test set, the mean of both directions and over seeds; *alone*: one path "
    "without the others, the mean of the paths. FLOPs and seconds of training are those over `{budget}`'s. R²: how "
    "much of a path a linear map of another one predicts, on items that it was not fitted to. Differences are paired "
    "by seed and item; ± is a standard error from {bootstraps:,} draws of seeds and items with replacement. **Bold**: "
    "p < {level} by Student's t, after Holm's correction over all cells of its table."
)

CAPTION = "Differences of the fused embedding from the baselines; bars are two standard errors."


@dataclass(frozen=True)
class Table:
    """A table and what it is about."""

    title: str
    heads: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        rows = [self.heads, ["---"] * len(self.heads), *self.lines]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def read_rows(study: StudySection) -> Rows:
    """The records that there are; rows without any are left out. Raises UserError if one is damaged."""
    found = {
        row: {
            seed: record
            for seed in study.seeds
            if (record := read_record(study.record_folder, f"{row}-seed{seed}")) is not None
        }
        for row in study.rows
    }
    return {row: records for row, records in found.items() if records}


def tables(study: StudySection, rows: Rows) -> tuple[list[Table], dict[str, Found]]:
    """The table of all rows and one for each baseline that has records, and the differences in the latter."""
    tests = tests_of([record for records in rows.values() for record in records.values()])
    found = {baseline: differences(study, rows, baseline) for baseline in study.baselines if baseline in rows}
    result = [_overview(study, rows, tests)]
    for baseline, own in found.items():
        names = list(dict.fromkeys(row for row, _ in own))
        heads = ["row", *tests, "seeds"]
        lines = [
            [_label(study, row), *(_cell(own.get((row, test))) for test in tests), _seeds(own, row)] for row in names
        ]
        result.append(Table(f"Fused embedding less {_label(study, baseline)}", heads, lines))
    return result, found


def _overview(study: StudySection, rows: Rows, tests: list[str]) -> Table:
    budget = rows.get(study.budget_row)
    lines = []
    for row, records in rows.items():
        cells = [_label(study, row), f"{_mean(records, 'steps'):.0f}"]
        for key in ("flops", "seconds"):
            cells.append(f"{_mean(records, key) / _mean(budget, key):.2f}" if budget else "–")
        for test in tests:
            scores = [
                np.mean([values(record, test, score, study.metric).mean() for record in records.values()])
                for score in (FUSED, SINGLE)
            ]
            cells += [f"{score:.3f}" for score in scores]
        r2 = [own for record in records.values() if (own := path_r2(record)) is not None]
        cells += [f"{np.mean(r2):.2f}" if r2 else "–", str(len(records))]
        lines.append(cells)
    heads = ["row", "steps", "FLOPs", "seconds", *(f"{test}{kind}" for test in tests for kind in ("", ", alone"))]
    return Table(f"All rows ({study.metric})", [*heads, "R²", "seeds"], lines)


def _mean(records: dict[int, Record], key: str) -> float:
    return float(np.mean([record.facts[key] for record in records.values()]))


def _label(study: StudySection, row: str) -> str:
    about = study.rows[row].about
    return f"`{row}`: {about}" if about else f"`{row}`"


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{difference.mean:+.3f} ± {difference.error:.3f}"
    return f"**{text}**" if difference.significant else text


def _seeds(found: Found, row: str) -> str:
    return str(max(difference.seeds for (name, _), difference in found.items() if name == row))


def path_r2(record: Record) -> float | None:
    """Held-out R² between paths, mean over test sets; None of a single path."""
    figures = record.facts["paths"].values()
    return float(np.mean([own["path_r2"] for own in figures])) if figures else None


Panels = tuple[tuple[float, float], int, int, Callable[[list[Axes], dict], None]]
"""Size in inches, rows, columns, and what paints them."""


def panels(study: StudySection, found: dict[str, Found]) -> Panels:
    """Differences from each baseline with bars of two standard errors, a panel for each."""

    def paint(axes: list[Axes], theme: dict) -> None:
        for panel, (baseline, own) in zip(axes, found.items(), strict=True):
            names, tests = (list(dict.fromkeys(key[place] for key in own)) for place in (0, 1))
            for number, test in enumerate(tests):
                chosen = [(place, own[row, test]) for place, row in enumerate(names) if (row, test) in own]
                heights = [-place - (number - (len(tests) - 1) / 2) * 0.2 for place, _ in chosen]
                errors = [2 * one.error for _, one in chosen]
                look = {"color": theme["paths"][number % len(theme["paths"])], "markersize": 4, "label": test}
                panel.errorbar([one.mean for _, one in chosen], heights, xerr=errors, fmt="o", **look)
            panel.axvline(0, color=theme["text"], linewidth=0.8)
            panel.set_yticks([-place for place in range(len(names))], names)
            finish(panel, "", f"{study.metric} less that of {baseline}")
            panel.legend(frameon=False, fontsize=8)

    height = 1.2 + 0.45 * max(len({row for row, _ in own}) for own in found.values())
    return (6.0 * len(found), height), 1, len(found), paint


def trade_off(study: StudySection, rows: Rows) -> Panels:
    """Retrieval over the dependence of paths: each row with several paths by its mean over seeds and test sets, with
    bars of two standard errors over seeds."""

    def paint(axes: list[Axes], theme: dict) -> None:
        for number, (row, records) in enumerate(rows.items()):
            both = [
                (r2, np.mean([values(record, test, FUSED, study.metric).mean() for test in tests_of([record])]))
                for record in records.values()
                if (r2 := path_r2(record)) is not None
            ]
            if both:
                means, spread = np.mean(both, axis=0), np.std(both, axis=0, ddof=1) if len(both) > 1 else np.zeros(2)
                errors = 2 * spread / np.sqrt(len(both))
                look = {"color": theme["paths"][number % len(theme["paths"])], "fmt": "os^vD"[number // 6 % 5]}
                axes[0].errorbar(means[0], means[1], yerr=errors[1], xerr=errors[0], label=row, **look)
        finish(axes[0], study.metric, "held-out R² between paths")
        axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    return (8.0, 4.5), 1, 1, paint


def reading(study: StudySection) -> str:
    """How to read the tables."""
    return READING.format(metric=study.metric, budget=study.budget_row, bootstraps=study.bootstraps, level=LEVEL)


def _coverage(study: StudySection, rows: Rows) -> str:
    made, planned = sum(map(len, rows.values())), len(study.rows) * len(study.seeds)
    every = f"{len(study.rows)} rows with {len(study.seeds)} seeds each."
    return every if made == planned else f"{made} of {planned} runs are made ({every[:-1]} are planned)."


def write_page(studies: Iterable[tuple[Path, StudySection]], page: Path) -> None:
    """Write studies one below the other as Markdown, their figures beside it (``PAGE-STUDY.svg``), and the same as one
    HTML file that holds everything.

    Args:
        studies: each with its file, which the page names.
        page: the Markdown file.

    Raises:
        UserError: a record is damaged.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    sections, shown = [], []
    for source, study in studies:
        rows = read_rows(study)
        made, found = tables(study, rows) if rows else ([], {})
        title, coverage = study.title or source.stem, _coverage(study, rows)
        parts = [f"## {title}", f"`pdfx ablate {source}`: {coverage}", reading(study)]
        parts += [table.markdown() for table in made]
        drawn = []
        for kind, caption, chosen in _figures(study, rows, found):
            picture = page.with_name(f"{page.stem}-{source.stem}{kind}.svg")
            _write(picture, render(*chosen, "light"))
            drawn.append(draw(*chosen, caption, caption))
            parts.append(f"![{caption}]({picture.name})")
        sections.append("\n\n".join([*parts, *filter(None, [study.discussion.strip()])]))
        page_values = {
            "title": title,
            "coverage": coverage,
            "reading": reading(study),
            "tables": made,
            "figures": drawn,
        }
        shown.append({**page_values, "discussion": study.discussion.split("\n\n")})
    _write(page, ("# What parallel paths buy\n\n" + "\n\n".join(sections) + "\n").encode())
    _write(page.with_suffix(".html"), render_page("pdfx.study", "results.html.j2", studies=shown).encode())


def _figures(study: StudySection, rows: Rows, found: dict[str, Found]) -> Iterator[tuple[str, str, Panels]]:
    """The end of each figure's name, its caption and its panels."""
    if any(found.values()):
        yield "", CAPTION, panels(study, found)
    if sum(any(path_r2(record) is not None for record in records.values()) for records in rows.values()) > 1:
        yield "-paths", f"{study.metric} of the fused embedding over the dependence of paths.", trade_off(study, rows)


def _write(path: Path, data: bytes) -> None:
    with write_atomically(path) as stream:
        stream.write(data)
