"""Stops a run whose data is worse than its owner said it would be."""

from __future__ import annotations

from pdfx.errors import UserError

_NAMED = 5


def check_share(corrupt: int, read: int, max_share: float, names: list[str], samples: str, setting: str) -> None:
    """Raises UserError if more of the ``read`` samples could not be used than ``max_share`` allows; a single one is
    forgiven, unless the share is 0.

    Args:
        names: sentences about corrupt ones.
        samples: words for what was read.
        setting: the name of the share.
    """
    if corrupt > (max(max_share * read, 1) if max_share > 0 else 0):
        known = " The latest of them: " + " ".join(names[-_NAMED:]) if names else ""
        raise UserError(
            f"{corrupt} of the {read} {samples} could not be used, and {setting} is {max_share:g}.{known} "
            "Find them all with 'pdfx shards check --full --processor MODEL' and rebuild the shards, or raise "
            f"{setting}."
        )


class CorruptSampleGuard:
    """Counts the samples that could not be used, over all ranks, and stops past a share (the rule is ours).

    The run stops as soon as ``corrupt > max(share * read, 1)``. A single corrupt sample is thus always forgiven,
    however early it comes, unless the share is 0, where none is; nothing but whole counts enters, so every rank that is
    given the same counts decides alike.

    Args:
        max_share: the share of the samples read so far, 0 to 1.
        state: what ``state_dict`` of an earlier guard gave.
    """

    def __init__(self, max_share: float, state: dict | None = None):
        self.max_share = max_share
        self.read, self.corrupt = (int(state["read"]), int(state["corrupt"])) if state else (0, 0)
        self._names: list[str] = []

    def add(self, read: int, corrupt: int, names: list[str] | tuple[str, ...] = ()) -> None:
        """Count ``read`` more samples, ``corrupt`` of which could not be used. All ranks must give the same, global,
        counts.

        Args:
            names: sentences about the corrupt ones, as far as this rank knows them (``Batch.problems``); the latest are
                told where the run stops.

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
