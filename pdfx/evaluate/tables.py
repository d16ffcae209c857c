"""Retrieval metrics as tables, on a console and in JSON."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pdfx.data.mmeb import SETS, present_sets
from pdfx.evaluate.data_sets import Average, Results, averages, missing_sets
from pdfx.evaluate.embedding import MAXSIM
from pdfx.evaluate.metrics import PRECISION
from pdfx.evaluate.retrieval import CHANCE, DIRECTIONS, RELEVANT
from pdfx.host.console import console as plain_console

LEGEND = (
    "Searched are all distinct targets (by target_id, text and pictures' bytes), or all distinct queries in the other "
    "direction; right are those of the same target_id. chance: the expected value of a random order."
)
DIRECTION_LABELS = {"query_to_target": "query → target", "target_to_query": "target → query"}
_WIDTH = 240
"""Columns at most if the output is not a terminal; rich would squeeze tables into 80."""


def metric_rows(metrics: dict[str, float], direction: str) -> dict[str, dict[str, float]]:
    """The metrics of one direction by score, then by name, in the order in which they were measured."""
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith(f"{direction}/"):
            _, score, name = key.split("/")
            rows.setdefault(score, {})[name] = value
    return rows


def measured_directions(metrics: dict[str, float]) -> list[str]:
    """Both, or the first alone."""
    return [direction for direction in DIRECTIONS if metric_rows(metrics, direction)]


def score_label(score: str) -> str:
    """A reader's name of a score."""
    return {MAXSIM: "best of paths (MaxSim)", CHANCE: "chance"}.get(score, score.replace("_", " "))


def sizes_label(metrics: dict[str, float], direction: str) -> str:
    """How many ask among how many, and how many of these are right."""
    right = f"{metrics[RELEVANT[direction]]:.4g} right on average"
    if "candidates" in metrics:
        return (
            f"{int(metrics['queries'])} queries, each among its own candidates, {metrics['candidates']:.4g} on "
            f"average, {right}"
        )
    asking, answering = ("queries", "targets") if direction == DIRECTIONS[0] else ("targets", "queries")
    return f"{int(metrics[asking])} {asking} among {int(metrics[answering])} {answering}, {right}"


def remarks(metrics: dict[str, float]) -> list[str]:
    """What the figures do not cover, one sentence each."""
    left_out, cut = (
        [int(metrics.get(f"{what}_{side}", 0)) for side in ("queries", "targets")] for what in ("left_out", "truncated")
    )
    found = []
    if samples := int(metrics.get("left_out", 0)):
        found.append(
            f"{samples} samples cannot be used, so {left_out[0]} queries and {left_out[1]} targets are left out."
        )
    if any(cut):
        found.append(
            f"The texts of {cut[0]} queries and {cut[1]} targets are cut at the model's max_text_tokens; what "
            "follows the cut is not seen."
        )
    return found


def console_tables(metrics: dict[str, float]) -> list[Table]:
    """One table per direction that was measured."""
    tables = []
    for direction in measured_directions(metrics):
        rows = metric_rows(metrics, direction)
        table = Table(title=f"{DIRECTION_LABELS[direction]} ({sizes_label(metrics, direction)})", title_justify="left")
        table.add_column("score")
        for name in rows[CHANCE]:
            table.add_column(name, justify="right")
        for score, values in rows.items():
            table.add_row(
                score_label(score),
                *(f"{value:.3f}" for value in values.values()),
                style="dim" if score == CHANCE else None,
            )
        tables.append(table)
    return tables


def result_tables(results: Results) -> list[Table]:
    """The tables of a single data set, or those of several."""
    if len(results) == 1:
        return console_tables(next(iter(results.values())))
    found, order = averages(results), _table_order(results)
    return [
        _table_of_sets(results, found, order, direction, metric)
        for direction in DIRECTIONS
        for metric in _metric_names(results, direction)
    ]


def print_tables(tables: list[Table], console: Console) -> None:
    """Print where the console does; in a file at the tables' own width."""
    wide = console if console.is_terminal else plain_console(console.file, width=_WIDTH)
    for table in tables:
        wide.print(table)


def notes(results: Results) -> list[str]:
    """What to know about the figures: what was searched, left out or cut, and which data sets of MMEB are missing."""
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


def _table_of_sets(results: Results, found: list[Average], order: list[str], direction: str, metric: str) -> Table:
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


@dataclass(frozen=True)
class MetricTable:
    """One direction's metrics as the page shows them."""

    label: str
    sizes: str
    names: list[str]
    rows: list[tuple[str, str, list[float]]]
    """(score, reader's name of it, values in the order of ``names``)"""
    headline: str
    best: float
    """Fused value of the headline's metric."""
    factor: float
    """How many times chance it is."""


def metric_table(metrics: dict[str, float], direction: str) -> MetricTable:
    rows = metric_rows(metrics, direction)
    names = list(rows[CHANCE])
    headline = next((name for name in (PRECISION, "recall@10") if name in names), names[0])
    return MetricTable(
        label=DIRECTION_LABELS[direction],
        sizes=sizes_label(metrics, direction),
        names=names,
        rows=[(score, score_label(score), [values[name] for name in names]) for score, values in rows.items()],
        headline=headline,
        best=rows["fused"][headline],
        factor=rows["fused"][headline] / rows[CHANCE][headline],
    )
