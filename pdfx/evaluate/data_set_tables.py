"""Metrics of several data sets as tables on a console: one per metric, with a row per data set and per average."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pdfx.data.mmeb import SETS, present_sets
from pdfx.evaluate.data_sets import Average, Results, averages, missing_sets
from pdfx.evaluate.metrics import PRECISION
from pdfx.evaluate.retrieval import CHANCE, DIRECTIONS
from pdfx.evaluate.tables import (
    DIRECTION_LABELS,
    console_tables,
    measured_directions,
    metric_rows,
    remarks,
    score_label,
    sizes_label,
)
from pdfx.host.console import console as plain_console

_WIDTH = 240
"""Columns at most where the output is no terminal; rich would squeeze tables into 80."""


def result_tables(results: Results) -> list[Table]:
    """The tables of a single data set, or those of several."""
    if len(results) == 1:
        return console_tables(next(iter(results.values())))
    found, order = averages(results), _table_order(results)
    return [
        _metric_table(results, found, order, direction, metric)
        for direction in DIRECTIONS
        for metric in _metric_names(results, direction)
    ]


def print_tables(tables: list[Table], console: Console) -> None:
    """Print where the console does; in a file at the tables' own width."""
    wide = console if console.is_terminal else plain_console(console.file, width=_WIDTH)
    for table in tables:
        wide.print(table)


def notes(results: Results) -> list[str]:
    """What to know about the figures: of several data sets what was searched in each, what is left out or cut, and
    which of MMEB's data sets are not there."""
    if len(results) == 1:
        return remarks(next(iter(results.values())))
    found = []
    for name, metrics in results.items():
        sizes = "; ".join(sizes_label(metrics, direction) for direction in measured_directions(metrics))
        found.append(" ".join([f"{name}: {sizes}.", *remarks(metrics)]))
    missing = missing_sets(results)
    if missing:
        found.append(
            f"{len(missing)} of MMEB's {len(SETS)} data sets are missing, so its averages are over the others: "
            f"{', '.join(missing)}."
        )
    return found


def _table_order(results: Results) -> list[str]:
    """MMEB's data sets as in its table, then the others."""
    known = list(present_sets(results).values())
    return [*known, *(name for name in results if name not in known)]


def _metric_names(results: Results, direction: str) -> list[str]:
    names: dict[str, None] = {}
    for metrics in results.values():
        own = metric_rows(metrics, direction).get(CHANCE, {})
        # Of a query with candidates of its own, one is right, so recall@1 would be the same table again.
        names |= dict.fromkeys(name for name in own if not (name == "recall@1" and PRECISION in own))
    return list(names)


def _metric_table(results: Results, found: list[Average], order: list[str], direction: str, metric: str) -> Table:
    rows = {name: _scores(results[name], direction, metric) for name in order}
    rows = {name: scores for name, scores in rows.items() if scores}
    table = Table(title=f"{metric}, {DIRECTION_LABELS[direction]}", title_justify="left")
    table.add_column("data set")
    for score in next(iter(rows.values())):
        table.add_column(score_label(score), justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in scores.values()), end_section=name == list(rows)[-1])
    for average in found:
        scores = _scores(average.metrics, direction, metric)
        if scores:
            share = f"{average.of}" if len(average.members) == average.of else f"{len(average.members)} of {average.of}"
            table.add_row(f"{average.name} ({share})", *(f"{value:.3f}" for value in scores.values()), style="bold")
    return table


def _scores(metrics: dict[str, float], direction: str, metric: str) -> dict[str, float]:
    """One metric of every score that has it."""
    return {score: values[metric] for score, values in metric_rows(metrics, direction).items() if metric in values}
