"""Labels that say how similar the two sides of a pair are."""

from __future__ import annotations

from typing import Any

from data_tools.sources.base import BELOW_LABEL
from data_tools.sources.tables.values import Problem, shown


class Labels:
    """Refuses pairs that are no positive ones: trained on, they would teach the opposite of what their label says.

    Args:
        least: the lowest label of a positive pair. None: any label will do.
    """

    def __init__(self, least: float | None):
        self.least = least

    def require(self, value: Any, field: str) -> None:
        """Raises Problem where the label is too low, or no number."""
        if self.least is None:
            return
        try:
            number = float(value) if isinstance(value, (str, int, float)) else None
        except ValueError:
            number = None
        if number is None or number != number:
            raise Problem(f"'{field}' is {shown(value)}: it must be a number")
        if number < self.least:
            raise Problem(
                f"'{field}' is {number:g}, below min_label={self.least:g}, so it is not a positive pair", BELOW_LABEL
            )
