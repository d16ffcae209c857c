"""Heat maps of paths against paths, or against layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pdfx.evaluate.figures import MAX_CELLS, Picture, draw

CELL = 0.62
"""Height, in inches, of a cell that shows a number."""
MAX_TICKS = 8


@dataclass(frozen=True)
class Panel:
    """A heat map: a row for each path, a column for each path or layer."""

    title: str
    matrix: list[list[float]]


def heat_maps(
    panels: list[Panel],
    columns_of_panels: int,
    bounds: tuple[float, float],
    caption: str,
    columns: str = "path",
    first_column: int = 0,
) -> Picture:
    """Draw panels in a grid; all of them share one colour scale.

    Args:
        columns_of_panels: panels side by side.
        bounds: the lowest and the highest value of the colour scale.
        columns: what a column within a panel stands for, ``path`` or ``layer``.
        first_column: number of a panel's first column.
    """
    rows, wide = len(panels[0].matrix), len(panels[0].matrix[0])
    numbered = max(rows, wide) <= MAX_CELLS
    size_of_text = min(9.0, 48 / max(rows, wide))

    look: dict[str, Any] = {
        "cmap": "RdBu_r" if bounds[0] < 0 else "Blues",
        "vmin": bounds[0],
        "vmax": bounds[1],
        "aspect": "auto",
    }
    extent = (first_column - 0.5, first_column + wide - 0.5, rows - 0.5, -0.5)

    def paint(axes: list[Axes], theme: dict) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            image = axis.imshow(panel.matrix, extent=extent, **look)
            axis.set_title(panel.title, fontsize=9)
            axis.set_ylabel("path")
            axis.set_xlabel(columns)
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_locator(MaxNLocator(integer=True, nbins=MAX_TICKS))
            axis.spines[:].set_visible(False)
            for i, j in ((i, j) for i in range(rows) for j in range(wide) if numbered):
                value = panel.matrix[i][j]
                if math.isfinite(value):
                    colour = "white" if abs(value) > 0.6 else "#1f2430"
                    place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size_of_text}
                    axis.text(j + first_column, i, f"{value:.2f}", color=colour, **place)
        axes[0].figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)

    lines = math.ceil(len(panels) / columns_of_panels)
    size = (max(6.0, columns_of_panels * 2.6), lines * min(0.9 + max(rows * CELL, 0.8), 3.4))
    return draw(size, lines, columns_of_panels, paint, f"{caption} {_in_words(panels, columns)}", caption)


def _in_words(panels: list[Panel], columns: str) -> str:
    ranges = []
    for panel in panels:
        values = [
            value
            for i, row in enumerate(panel.matrix)
            for j, value in enumerate(row)
            if (columns != "path" or i != j) and math.isfinite(value)
        ]
        if values:
            ranges.append(f"{panel.title} from {min(values):.2f} to {max(values):.2f}")
    return f"Heat maps: {'; '.join(ranges)}."
