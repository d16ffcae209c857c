"""The samples that a run could not use: how many of each data set, and the share that stops the run."""

from __future__ import annotations

from rich.table import Table

from pdfx.data.batch import Problem
from pdfx.data.samples import KINDS, too_many
from pdfx.errors import UserError

_NAMED = 5


def check_share(corrupt: int, read: int, max_share: float, names: list[str], samples: str, setting: str) -> None:
    """Raises UserError if more of the ``read`` samples could not be used than ``max_share`` allows.

    Args:
        names: sentences about corrupt ones.
        samples: words for what was read.
        setting: the name of the share.
    """
    if too_many(corrupt, read, max_share):
        known = " The latest of them: " + " ".join(names[-_NAMED:]) if names else ""
        raise UserError(
            f"{corrupt} of the {read} {samples} could not be used, and {setting} is {max_share:g}.{known} Find them "
            f"all with 'pdfx shards check --full --processor MODEL' and rebuild the shards, or raise {setting}."
        )


class CorruptSampleGuard:
    """Counts the samples that could not be used, over all ranks, and stops past a share (the rule is ours).

    The run stops as soon as ``corrupt > max(share * read, 1)``, so a single one is forgiven; if the share is 0, none
    is. Ranks that are given the same counts decide alike.

    Args:
        max_share: the share of the samples read so far, 0 to 1.
        state: what ``state_dict`` of an earlier guard gave.
    """

    def __init__(self, max_share: float, state: dict | None = None):
        self.max_share = max_share
        self.read, self.corrupt = (int(state["read"]), int(state["corrupt"])) if state else (0, 0)
        self._names: list[str] = []

    def add(self, read: int, corrupt: int, names: list[str] | tuple[str, ...] = ()) -> None:
        """Count ``read`` more samples of all ranks, ``corrupt`` of which could not be used.

        Args:
            names: sentences about those that this rank knows; the latest are reported if the run stops.

        Raises:
            UserError: more than the share could not be used.
        """
        self.read += read
        self.corrupt += corrupt
        self._names = [*self._names, *names][-_NAMED:]
        check_share(
            self.corrupt, self.read, self.max_share, self._names, "samples read so far", "data.max_corrupt_share"
        )

    def state_dict(self) -> dict:
        return {"read": self.read, "corrupt": self.corrupt}


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
        """By data set, for the run so far, if ``consumed`` samples of each were handed out (``seen``): each of them is
        unique or repeated, and used or unusable. A data set is read to its end before a sample of it is repeated."""
        report = {}
        for name, size, seen, kinds in zip(self.names, self.sizes, consumed, self.unusable, strict=True):
            unique = min(seen, size)
            report[name] = {
                "samples": size,
                "seen": seen,
                "unique": unique,
                "repeated": seen - unique,
                "used": seen - sum(kinds),
                "unusable": {kind: count for kind, count in zip(KINDS, kinds, strict=True) if count},
                "not_yet_seen": size - unique,
            }
        return report


def coverage_table(report: dict[str, dict], title: str) -> Table:
    """A report for the console."""
    columns = ("samples", "seen", "unique", "repeated", "not_yet_seen", "used")
    table = Table("data set", *(name.replace("_", " ") for name in columns), "unusable", title=title)
    for name, counts in report.items():
        reasons = ", ".join(f"{count} {kind}" for kind, count in counts["unusable"].items()) or "0"
        table.add_row(name, *(f"{counts[column]:,}" for column in columns), reasons)
    return table
