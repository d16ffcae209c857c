"""MMEB, the data that VLM2Vec is trained and evaluated on: one data set of its training or of its evaluation data."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from data_tools.sources.base import Paths, SourceRecord, as_list, has_ending, input_files
from data_tools.sources.rows import TABLE_ENDINGS, RowsSource, listed, open_rows
from data_tools.sources.values import (
    FieldError,
    Pictures,
    Row,
    as_record,
    has_marker,
    is_missing,
    raw_of,
    shown,
    side_of,
    text_of,
    without_markers,
)
from pdfx.data.mmeb import find_set
from pdfx.errors import UserError

TRAINING = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
EVALUATION = ("qry_inst", "qry_text", "qry_img_path", "tgt_inst", "tgt_text", "tgt_img_path")
"""The newer files hold the instructions apart (``qry_inst``, ``tgt_inst``); the older ones within the texts."""
_IDENTITY_BYTES = 8
"""Lists of candidates are long, so an identity has 11 characters; readers of shards hash it to 64 bits anyway."""
_PART_OF_SPLIT = re.compile(r"-[0-9]+-of-[0-9]+$")


class MmebSource(RowsSource):
    """Records of one data set of MMEB; which of the two layouts it has follows from its columns.

    Training data: each row is a query, its target, and hard negatives if there are any. Evaluation data: each row is a
    query and its candidates, of which the first is right; it gives a record with ``candidates``. Each candidate that is
    no query's target then gives a record without a query. Candidates with the same text and image path are the same
    one, also across rows. Markers such as ``<|image_1|>`` are removed from all texts.

    Args:
        paths: parquet or JSONL: a file, several files, or the directory of one data set.
        split: which files of a directory are read, by the beginning of their names; needed if they have several, as
            MMEB's training data has ``original`` and ``diverse_instruction``.

    Raises:
        UserError: a file cannot be read, the split is missing or not said, or the columns are of neither layout.
    """

    format = "mmeb"

    def __init__(self, paths: Paths, split: str | None = None):
        self.settings = {"split": split}
        self.rows = open_rows(_files_of_split(paths, split))
        present = set(self.rows.columns)
        if present.issuperset(("qry", "pos_text")):
            self.is_evaluation, columns = False, TRAINING
        elif present.issuperset(("qry_text", "tgt_text")):
            self.is_evaluation, columns = True, EVALUATION
        else:
            raise UserError(
                f"{self.rows.files[0]} is not a data set of MMEB: it has the columns {listed(self.rows.columns)}, and "
                "neither 'qry' and 'pos_text', as for training, nor 'qry_text' and 'tgt_text', as for evaluation."
            )
        self.used = [name for name in columns if name in present]

    def total(self) -> int | None:
        return None if self.is_evaluation else super().total()

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        return islice(self._queries_and_candidates(), start, None) if self.is_evaluation else super().records(start)

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        query = _side(values.get("qry"), values.get("qry_image_path"), "qry", "qry_image_path", pictures)
        target = _side(values.get("pos_text"), values.get("pos_image_path"), "pos_text", "pos_image_path", pictures)
        places = _places(values, "neg_text", "neg_image_path")
        negatives = [_side(*place, "neg_text", "neg_image_path", pictures) for place in places if any(place)]
        return {"query": query, "target": target, "negatives": negatives}

    def _queries_and_candidates(self) -> Iterator[SourceRecord]:
        targets: set[str] = set()
        candidates: set[str] = set()
        for row in self.rows.read(0, self.used):
            source = as_record(row, _query_fields)
            if source.record is not None:
                targets.add(source.record.target_id or "")
                candidates.update(source.record.candidates or ())
            yield source
        if others := candidates - targets:
            yield from self._candidates(others)

    def _candidates(self, wanted: set[str]) -> Iterator[SourceRecord]:
        """A record without a query for each of these identities, from the first row that has it."""
        for row in self.rows.read(0, self.used):
            try:
                candidates = _candidates_of(row.values or {})
            except FieldError:
                continue
            for identity, (place, side) in candidates.items():
                if identity in wanted:
                    wanted.remove(identity)
                    of_candidate = Row(f"{row.origin} candidate {place + 1}", {}, raw=raw_of(side))
                    yield as_record(of_candidate, partial(_without_query, identity, side))


def _query_fields(values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    candidates = _candidates_of(values)
    right, (_, target) = next(iter(candidates.items()))
    text = _joined(values.get("qry_inst"), "qry_inst", values.get("qry_text"), "qry_text")
    query = _side(text, values.get("qry_img_path"), "qry_text", "qry_img_path", pictures)
    return {"query": query, "target": target, "target_id": right, "candidates": list(candidates)}


def _candidates_of(values: dict[str, Any]) -> dict[str, tuple[int, dict[str, Any]]]:
    """By identity, each candidate's place in the lists and its content; the first is the right one.

    Raises:
        FieldError: there is none, or one cannot be used.
    """
    candidates: dict[str, tuple[int, dict[str, Any]]] = {}
    instruction = values.get("tgt_inst")
    for place, (text, image) in enumerate(_places(values, "tgt_text", "tgt_img_path")):
        try:
            if not isinstance(image, str | None):
                raise FieldError(f"'tgt_img_path' is {shown(image)}: it must be the path of an image")
            identity, side = _candidate(_joined(instruction, "tgt_inst", text, "tgt_text"), image or "")
        except FieldError as error:
            raise FieldError(f"of candidate {place + 1}, {error}") from None
        candidates.setdefault(identity, (place, side))
    if not candidates:
        raise FieldError("'tgt_text' is empty: the query has no candidates")
    return candidates


@lru_cache(maxsize=1 << 16)
def _candidate(text: str, image: str) -> tuple[str, dict[str, Any]]:
    """Identity and content; cached, since rows share most of their candidates. May raise FieldError."""
    side = _side(text, image, "tgt_text", "tgt_img_path", Pictures())
    digest = hashlib.blake2b(digest_size=_IDENTITY_BYTES)
    for part in (side["text"], image):
        digest.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("="), side


def _places(values: dict[str, Any], text_field: str, image_field: str) -> list[tuple[Any, Any]]:
    """(text, path of an image) pairs from two lists of the same length; a plain value counts as a list of one, and one
    of the lists may be empty."""
    texts, images = (
        value if isinstance(value, list) else [] if is_missing(value) else [value]
        for value in (values.get(text_field), values.get(image_field))
    )
    if texts and images and len(texts) != len(images):
        raise FieldError(
            f"'{text_field}' has {len(texts)} texts and '{image_field}' {len(images)} paths; there must be as many "
            "of each, empty ones included"
        )
    return list(zip_longest(texts, images))


def _joined(instruction: Any, instruction_field: str, text: Any, text_field: str) -> str:
    return " ".join(filter(None, (text_of(instruction, instruction_field).strip(), text_of(text, text_field).strip())))


def _side(text: Any, image: Any, text_field: str, image_field: str, pictures: Pictures) -> dict[str, Any]:
    text, names = text_of(text, text_field), pictures.names(image, image_field)
    if has_marker(text) and not names:
        raise FieldError(f"'{text_field}' marks the place of an image, and '{image_field}' is empty")
    return side_of(without_markers(text), names, f"{text_field}', '{image_field}")


def _without_query(identity: str, side: dict[str, Any], values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    return {"target": side, "target_id": identity}


def _files_of_split(paths: Paths, split: str | None) -> list[Path]:
    """The files of one split.

    Raises:
        UserError: there is none, there are several and none is named, or a directory holds data sets instead of files.
    """
    for path in as_list(paths):
        _require_one_data_set(path)
    files = input_files(paths, TABLE_ENDINGS)
    by_split: dict[str, list[Path]] = {}
    for path in files:
        name = _PART_OF_SPLIT.sub("", path.name.partition(".")[0])
        by_split.setdefault(name, []).append(path)
    if split is None and len(by_split) > 1:
        raise UserError(
            f"{files[0].parent} holds the splits {', '.join(by_split)}; say which one is wanted, as in "
            f"split={next(iter(by_split))}."
        )
    if split is not None and split not in by_split:
        raise UserError(f"There is no split '{split}' in {files[0].parent}; there are {', '.join(by_split)}.")
    return files if split is None else by_split[split]


def _require_one_data_set(path: Path) -> None:
    if path.is_dir() and not any(has_ending(child, TABLE_ENDINGS) for child in path.iterdir()):
        known = sorted(child.name for child in path.iterdir() if child.is_dir() and find_set(child.name))
        if known:
            raise UserError(
                f"{path} holds {len(known)} data sets of MMEB ({', '.join(known)}); build each by itself, as in "
                f"{path / known[0]}."
            )
