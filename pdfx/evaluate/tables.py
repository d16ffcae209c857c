"""Retrieval metrics as tables, on a console and in JSON."""

from __future__ import annotations

from rich.table import Table

from pdfx.evaluate.embedding import MAXSIM
from pdfx.evaluate.retrieval import CHANCE, DIRECTIONS, RELEVANT

LEGEND = (
    "Searched are all distinct targets (by target_id, text and pictures' bytes), or all distinct queries in the "
    "other direction; right are those of the same "
    "target_id. chance: the expected value of a random order."
)
DIRECTION_LABELS = {"query_to_target": "query → target", "target_to_query": "target → query"}


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
