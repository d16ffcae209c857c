"""Whatever JSON stands in a line, an importer answers with records or problems, and goes on."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_formats import write_jsonl

from data_tools.sources.folder import FolderSource
from data_tools.sources.jsonl import JsonlSource
from data_tools.sources.mmeb import MmebSource
from data_tools.sources.swift import SwiftSource
from data_tools.sources.table import PARTS, ColumnsSource, TableSource
from data_tools.sources.tevatron import TevatronSource

MESSAGES = [{"role": "user", "content": "x <image>"}]
GOOD = {
    "jsonl": {
        "key": "k",
        "query": {"text": "q"},
        "target": {"images": ["a.png"]},
        "negatives": [{"text": "n"}],
        "target_id": "t",
        "candidates": ["t"],
    },
    "folder": {"file_name": "a.png", "text": ["a cat", "a pet"]},
    "table": dict.fromkeys(PARTS) | {"query.text": "q", "target.images": {"bytes": None, "path": "a.png"}},
    "columns": {"anchor": "a", "positive": {"text": "p", "image": "a.png"}, "negative": ["n"], "label": 1},
    "swift": {
        "messages": MESSAGES,
        "images": ["a.png"],
        "positive_messages": [MESSAGES],
        "positive_images": [["a.png"]],
    }
    | {"negative_messages": [MESSAGES], "negative_images": [["a.png"]], "label": 1},
    "tevatron": {
        "query_text": "q",
        "query_image": None,
        "positive_document_ids": ["d"],
        "negative_document_ids": ["d"],
    },
    "passages": {
        "query": "q",
        "positive_passages": [{"docid": "d", "title": "t", "text": "x"}],
        "negative_passages": [{"text": "y"}],
    },
    "mmeb": {
        "qry": "q",
        "qry_image_path": "",
        "pos_text": "p",
        "pos_image_path": "",
        "neg_text": "",
        "neg_image_path": "",
    },
    "mmeb_evaluation": {"qry_text": "q", "qry_img_path": "a.png", "tgt_text": ["a", "b"], "tgt_img_path": ["", ""]},
}


def open_format(name: str, folder):
    path = folder / "metadata.jsonl"
    if name == "folder":
        return FolderSource(folder)
    if name == "table":
        return TableSource(path, **{part: part for part in PARTS})
    if name == "columns":
        return ColumnsSource(path, columns="anchor,positive,negative", min_label=0.5)
    if name == "tevatron":
        return TevatronSource(
            path, write_jsonl(folder / "corpus.jsonl", [{"docid": "d", "text": "x"}]), positives="each", documents="all"
        )
    sources = {
        "jsonl": JsonlSource,
        "swift": SwiftSource,
        "passages": TevatronSource,
        "mmeb": MmebSource,
        "mmeb_evaluation": MmebSource,
    }
    return sources[name](path)


TEXTS = st.text(max_size=5) | st.sampled_from(["a.png", "d", "data:;base64,", "<image>", "\ud800"])
NAMES = st.sampled_from(
    ["text", "image", "images", "bytes", "path", "role", "content", "type", "url", "docid", "title"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutations(draw, record):
    """The record with values of any kind, at any depth, in the place of some of its own."""
    if draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    if isinstance(record, dict):
        return {name: draw(mutations(value)) for name, value in record.items()}
    if isinstance(record, list):
        return [draw(mutations(value)) for value in record] * draw(st.integers(0, 2))
    return record


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_record_gives_records_or_problems(name, data, tmp_path):
    bad = [data.draw(mutations(GOOD[name])) for _ in range(3)]
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [GOOD[name], *bad, GOOD[name]])
    )
    source = open_format(name, tmp_path)
    records = list(source.records())
    origins = {record.origin.partition(" candidate ")[0] for record in records}
    assert {f"{tmp_path}/metadata.jsonl line {number}" for number in range(1, 6)} <= origins
    assert all((record.record is None) != (record.problem is None) for record in records)
    assert records[0].record is not None and list(source.records(2)) == records[2:]
    for record in records:
        assert record.problem is None or (record.problem and "\n" not in record.problem)
