"""What a run read of each data set, and what it could not use: counts that add up to the last sample."""

from __future__ import annotations

from rich.table import Table

from pdfx.data.batch import Problem
from pdfx.data.samples import KINDS


class Coverage:
    """Counts unusable samples by data set and kind; all other figures follow from the position in the canonical order.

    Args:
        names: of the data sets.
        sizes: samples of each.
        unusable: what an earlier run counted, by data set and in the order of ``KINDS``.
    """

    def __init__(self, names: list[str], sizes: list[int], unusable: list[list[int]] | None = None):
        self.names, self.sizes = names, sizes
        self.unusable = [list(row) for row in unusable] if unusable else [[0] * len(KINDS) for _ in names]

    def count(self, problems: list[Problem]) -> list[int]:
        """The problems of one rank as plain counts, data set by data set, which sum over ranks."""
        counts = [[0] * len(KINDS) for _ in self.names]
        for problem in problems:
            counts[problem.data_set][KINDS.index(problem.kind)] += 1
        return [count for row in counts for count in row]

    def add(self, counts: list[int]) -> None:
        """Take in the sum over ranks of what ``count`` gave. All ranks must give the same."""
        for number, count in enumerate(counts):
            self.unusable[number // len(KINDS)][number % len(KINDS)] += count

    def report(self, consumed: list[int]) -> dict[str, dict]:
        """By data set, for the run so far: ``samples`` that it holds; ``seen``, how many were handed out, which are
        ``unique`` and ``repeated`` ones, and ``used`` and ``unusable`` ones; and ``not_yet_seen``. A data set is read
        to its end before a sample of it is repeated.

        Args:
            consumed: samples handed out of each data set.
        """
        report = {}
        for name, size, seen, kinds in zip(self.names, self.sizes, consumed, self.unusable, strict=True):
            unique = min(seen, size)
            unusable = {kind: count for kind, count in zip(KINDS, kinds, strict=True) if count}
            counts = {
                "samples": size,
                "seen": seen,
                "unique": unique,
                "repeated": seen - unique,
                "used": seen - sum(kinds),
            }
            report[name] = {**counts, "unusable": unusable, "not_yet_seen": size - unique}
        return report


def coverage_table(report: dict[str, dict], title: str) -> Table:
    """A report for the console."""
    columns = ("samples", "seen", "unique", "repeated", "not_yet_seen", "used")
    table = Table("data set", *(name.replace("_", " ") for name in columns), "unusable", title=title)
    for name, counts in report.items():
        reasons = ", ".join(f"{count} {kind}" for kind, count in counts["unusable"].items()) or "0"
        table.add_row(name, *(f"{counts[column]:,}" for column in columns), reasons)
    return table
