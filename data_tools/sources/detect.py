"""Telling the format of a path from what it holds."""

from __future__ import annotations

from pathlib import Path

from data_tools.sources.files import has_ending
from data_tools.sources.folder_files import METADATA_NAMES, UNREAD_ENDINGS, is_picture, listings
from data_tools.sources.lines import JSONL_ENDINGS
from data_tools.sources.tables.rows import TABLE_ENDINGS, listed, open_rows
from pdfx.errors import UserError

COLUMNS_OF_FORMATS: dict[str, tuple[set[str], ...]] = {
    "swift": ({"messages", "positive_messages"},),
    "tevatron": ({"positive_document_ids"}, {"positive_passages"}),
    "mmeb": ({"qry", "pos_text"}, {"qry_text", "tgt_text"}),
    "columns": ({"anchor", "positive"},),
}
"""The columns by which formats are known: all of one of the sets. Formats that come first are asked first."""


def guess_format(path: Path, formats: list[str]) -> str:
    """The name of the path's format.

    Args:
        formats: the names there are, for messages.

    Raises:
        UserError: it cannot be told, or a file cannot be read.
    """
    if path.is_dir() and _is_folder_of_pictures(path):
        return "folder"
    if not path.is_dir() and not has_ending(path, TABLE_ENDINGS):
        raise UserError(
            f"The format of {path} cannot be told from its name; give it with --format: {', '.join(formats)}."
        )
    rows = open_rows(path)
    columns = set(rows.columns)
    for name, alternatives in COLUMNS_OF_FORMATS.items():
        if any(alternative <= columns for alternative in alternatives):
            return name
    # Lines of which not one can be read are told one by one by the project's own format.
    if has_ending(rows.files[0], JSONL_ENDINGS) and ("target" in columns or not columns):
        return "jsonl"
    raise UserError(
        f"The format of {path} cannot be told from its columns ({listed(rows.columns)}); name them, as in --format "
        "table --option query.text=COLUMN "
        f"--option target.text=COLUMN, or give another one of {', '.join(formats)} with --format."
    )


def _is_folder_of_pictures(directory: Path) -> bool:
    names = [path.name for path in directory.iterdir()]
    if any(name in METADATA_NAMES for name in names):
        return True
    if any(has_ending(Path(name), TABLE_ENDINGS) for name in names):
        return False
    return any(
        is_picture(name) or name.lower().endswith(UNREAD_ENDINGS) or name in METADATA_NAMES
        for _, inner in listings(directory)
        for name in inner
    )
