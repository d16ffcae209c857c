"""Writes the rooms of the code into ``docs/architecture.md``: one line for each, and who imports whom.

Both are read from the code: a room's line is the docstring of its ``__init__.py``, an arrow is an import. Usage:
``python docs/draw_rooms.py``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
MARKS = ("<!-- rooms: written by docs/draw_rooms.py -->", "<!-- end of rooms -->")
ROOMS = (
    "pdfx.host",
    "pdfx.model",
    "pdfx.config",
    "pdfx.data.storage",
    "pdfx.data",
    "pdfx.distributed",
    "pdfx.objective",
    "pdfx.embedder",
    "pdfx.checkpoint",
    "pdfx.evaluate",
    "pdfx.faults",
    "pdfx.telemetry",
    "pdfx.convert",
    "pdfx.train",
    "pdfx.study",
    "data_tools.sources",
    "data_tools.build",
    "data_tools.inspect",
    "data_tools.rearrange",
    "pdfx.cli",
    "launch",
)
"""From the ground up: a room imports from those before it."""
OF_LAUNCH = "What users start: ``train.py``, recipes, job scripts, the quickstart."
GROUND = {"pdfx.errors": "pdfx.host", "pdfx": "pdfx.host", "pdfx.__main__": "pdfx.cli"}
"""Modules that are in no room's folder, and the room that they count to."""


def modules() -> dict[str, Path]:
    """The files of the product by their dotted names."""
    paths = (path for top in ("pdfx", "data_tools", "launch") for path in sorted((ROOT / top).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def room_of(module: str) -> str:
    """The innermost room that a module lies in. Raises KeyError if it is in none."""
    inside = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    return max(inside, key=len) if inside else GROUND[module]


def imports() -> Iterator[tuple[str, str]]:
    """All pairs of modules of which the first imports the second, wherever in the file."""
    known = modules()
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _imported(node, package):
                found = name if name in known else name.rpartition(".")[0]
                if found in known and found != module:
                    yield module, found


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = package.split(".")
    base = (
        [*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])]
        if node.level
        else [node.module or ""]
    )
    return [".".join([*base, alias.name]) for alias in node.names]


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    pairs = {(room_of(module), room_of(other)) for module, other in imports()}
    return {(room, other) for room, other in pairs if room != other}


def direct(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way stands for; the drawing is legible with these alone."""

    def reach(room: str) -> set[str]:
        return {other for start, end in pairs if start == room for other in {end, *reach(end)}}

    return {
        (room, other)
        for room, other in pairs
        if not any(other in reach(middle) for start, middle in pairs if start == room and middle != other)
    }


def description(room: str) -> str:
    """The first line of a room's docstring."""
    path = ROOT / room.replace(".", "/") / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else OF_LAUNCH
    return re.sub(r"``", "`", text.split("\n\n")[0].replace("\n", " "))


def section() -> str:
    """The part of the page between the marks."""
    lines = [f"| `{room.replace('.', '/')}/` | {description(room)} |" for room in ROOMS]
    nodes = [f'    {room.replace(".", "_")}["{room.removeprefix("pdfx.")}"]' for room in reversed(ROOMS)]
    edges = [f"    {room.replace('.', '_')} --> {other.replace('.', '_')}" for room, other in sorted(direct(arrows()))]
    return "\n".join(["| room | |", "|---|---|", *lines, "", "```mermaid", "flowchart TD", *nodes, *edges, "```"])


def page() -> str:
    """The whole page as it should be. Raises ValueError if it lacks the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"{PAGE} lacks the lines {' and '.join(MARKS)}.")
    return f"{before}{MARKS[0]}\n{section()}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
