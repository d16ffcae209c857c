"""What a study of estimators found, as claims and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from pdfx.host.files import write_atomically, write_json
from pdfx.study.estimator_figure import draw_study
from pdfx.study.estimators import DEFAULT, LOGGED, TUNED, Row

RACE_GOALS = {32: 0.05, 256: 0.2, 768: 0.4}
"""Largest R^2 between two paths after a race, by D."""
RECALL, SHARE, ERRORS = 0.97, 0.8, 3.0
HEAD = """# Estimators of dependence on known data

Written by `pdfx estimators`. Truth and estimates are in nats per dimension, but for `cross_correlation` and `hsic`;
± is the standard error over seeds.
"""


def write_study(parts: dict[str, list[Row]], folder: Path) -> dict[str, list[Row]]:
    """Write ``estimators.json``, ``estimators.md`` and ``estimators.svg`` into ``folder``, and return what the first
    holds: ``claims`` and the parts.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = {"claims": claims(parts), **parts}
    write_json(result, folder / "estimators.json")
    for ending, data in {"md": page(result).encode(), "svg": draw_study(parts)}.items():
        with write_atomically(folder / f"estimators.{ending}") as stream:
            stream.write(data)
    return result


def claims(parts: dict[str, list[Row]]) -> list[Row]:
    """What the default promises, what was measured, and whether it holds."""
    rows = _latest(parts["estimates"])
    vectors = [row for row in rows if row["case"].startswith("unit") and "rotated" not in row["case"]]
    found = []
    for estimator in (LOGGED, DEFAULT):
        least = min(row["share_of_limit"] for row in vectors if row["estimator"] == estimator)
        steps = min(row["steps"] for row in vectors)
        name = f"`{estimator}` on unit vectors, after {steps} steps: least share of what endless rows would give"
        found.append({"claim": name, "value": least, "goal": f">= {SHARE:g}", "holds": least >= SHARE})
    for estimator in (LOGGED, "cross_correlation"):
        zero = [row for row in rows if row["case"].startswith("independent") and row["estimator"] == estimator]
        away = abs(sum(row["mean"] for row in zero)) / math.sqrt(sum(row["error"] ** 2 for row in zero))
        name = f"`{estimator}` on independent data: standard errors away from 0, all cases together"
        found.append({"claim": name, "value": away, "goal": f"<= {ERRORS:g}", "holds": away <= ERRORS})
    return found + [_race_claim(row) for row in parts["races"] if row["estimator"] in (DEFAULT, TUNED)]


def _latest(rows: list[Row]) -> list[Row]:
    """Those after the most steps of their case."""

    def case(row: Row) -> tuple:
        return row["case"], row["dimension"]

    last: dict[tuple, int] = {}
    for row in rows:
        last[case(row)] = max(row["steps"], last.get(case(row), 0))
    return [row for row in rows if row["steps"] == last[case(row)]]


def _race_claim(row: Row) -> Row:
    """A race at a D without a goal is held to that of the next larger one."""
    goal = RACE_GOALS[min(size for size in RACE_GOALS if size >= row["dimension"])]
    name = (
        f"`{row['estimator']}` in a race, {_race_name(row)}: R² between the paths, at a recall@1 of {row['recall']:.3f}"
    )
    holds = row["r2"] <= goal and row["recall"] >= RECALL
    return {"claim": name, "value": row["r2"], "goal": f"<= {goal:g}", "holds": holds}


def _race_name(row: Row) -> str:
    offset = ", offset allowed" if row["offset"] else ""
    return f"D = {row['dimension']}, learning rate {row['learning_rate']:g}, {row['steps']} steps{offset}"


def page(result: dict[str, list[Row]]) -> str:
    """All of it as Markdown."""
    sections = {"Claims": _claims_table(result["claims"])} | _estimate_tables(result["estimates"])
    gradients = [
        row | {"input": f"D = {row['dimension']}, {'uneven' if row['uneven'] else 'flat'}"}
        for row in result["gradients"]
    ]
    races = [row | {"race": _race_name(row)} for row in result["races"]]
    sections["Gradients: cosine with the true one, of one step; of the mean of 16; share of the best fall"] = pivot(
        gradients,
        {"input": "input"},
        "estimator",
        lambda row: f"{row['cosine']:.2f}; {row['cosine_averaged']:.2f}; {row['share']:.2f}",
    )
    sections["Races: R² between the paths (recall@1)"] = pivot(
        races, {"race": "race"}, "estimator", lambda row: f"{row['r2']:.3f} ({row['recall']:.2f})"
    )
    return HEAD + "".join(f"\n## {name}\n{text}\n" for name, text in sections.items())


def _claims_table(found: list[Row]) -> str:
    rows = ((one["claim"], f"{one['value']:.3g}", one["goal"], "yes" if one["holds"] else "**no**") for one in found)
    return table(("claim", "measured", "goal", "holds"), rows)


def _estimate_tables(rows: list[Row]) -> dict[str, str]:
    """By what is varied: the case, the steps, the batch, the learning rate of the network."""
    batch = rows[0]["batch"]
    plain = [row for row in rows if row["learning_rate"] is None]
    usual = [row for row in plain if row["batch"] == batch]
    other = {(row["case"], row["dimension"]) for row in plain if row["batch"] != batch}
    compared = [row for row in _latest(plain) if (row["case"], row["dimension"]) in other]
    late = _latest(usual)
    by_case = {"case": "case", "dimension": "D", "steps": "steps", "truth": "truth"}
    by_estimator = {"case": "case", "dimension": "D", "estimator": "estimator"}
    return {
        f"After the last step of {batch} pairs": pivot(late, by_case, "estimator", _estimate),
        "Standard deviation of one step's estimate": pivot(
            late, by_case, "estimator", lambda row: f"{row['deviation']:.4f}"
        ),
        f"Over steps of {batch} pairs": pivot(usual, by_estimator, "steps", _estimate),
        "Over pairs of a step, after the last step": pivot(
            sorted(compared, key=lambda row: row["batch"]), by_estimator, "batch", _estimate
        ),
        "Over learning rates of the network": pivot(
            [row for row in rows if row["learning_rate"] is not None],
            {"case": "case", "dimension": "D", "steps": "steps"},
            "learning_rate",
            _estimate,
        ),
    }


def _estimate(row: Row) -> str:
    return f"{row['mean']:.3f} ± {row['error']:.3f}"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def pivot(rows: list[Row], heads: dict[str, str], column: str, cell: Callable[[Row], str]) -> str:
    """A Markdown table with one line for each value of the keys ``heads``, named by their values, and one column for
    each value of ``column``; a dash if nothing was measured."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        lines.setdefault(tuple(_shown(row[key]) for key in heads), {})[row[column]] = cell(row)
    columns = list(dict.fromkeys(row[column] for row in rows))
    cells = ([*line, *(found.get(name, "–") for name in columns)] for line, found in lines.items())
    return table([*heads.values(), *map(_shown, columns)], cells)


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
