import importlib
import inspect

import pytest
from tiny_formats import write_jsonl, write_mmeb_eval, write_mmeb_train, write_parquet, write_swift, write_tevatron
from tiny_shards import picture

from data_tools.sources.folder import FolderSource
from data_tools.sources.jsonl import JsonlSource
from data_tools.sources.mmeb import MmebSource
from data_tools.sources.registry import FORMATS, open_source
from data_tools.sources.swift import SwiftSource
from data_tools.sources.table import PARTS, ColumnsSource
from data_tools.sources.tevatron import TevatronSource
from pdfx.errors import UserError


def test_formats_are_told_from_what_a_path_holds(tmp_path):
    assert isinstance(
        open_source("auto", write_jsonl(tmp_path / "a.jsonl", [{"query": {"text": "q"}, "target": {"text": "t"}}])),
        JsonlSource,
    )
    assert isinstance(open_source("auto", write_swift(tmp_path / "swift", 2)), SwiftSource)
    assert isinstance(
        open_source("auto", write_parquet(tmp_path / "a.parquet", [{"anchor": "a", "positive": "p"}])), ColumnsSource
    )
    queries, corpus = write_tevatron(tmp_path / "tevatron", 2)
    assert isinstance(open_source("auto", queries, {"corpus": str(corpus)}), TevatronSource)
    assert all(isinstance(open_source("auto", path), MmebSource) for path in write_mmeb_eval(tmp_path / "mmeb", 2))
    assert isinstance(open_source("auto", write_mmeb_train(tmp_path / "mmeb", 2), {"split": "original"}), MmebSource)
    (tmp_path / "pairs" / "sub").mkdir(parents=True)
    (tmp_path / "pairs" / "sub" / "a.png").write_bytes(picture(0))
    assert isinstance(open_source("auto", tmp_path / "pairs"), FolderSource)
    (tmp_path / "pairs" / "metadata.csv").write_text("file_name,text\nsub/a.png,a cat\n")
    assert isinstance(open_source("auto", tmp_path / "pairs"), FolderSource)


def test_lines_that_cannot_be_read_are_told_one_by_one(tmp_path):
    (tmp_path / "a.jsonl").write_text("{\n[]\n")
    source = open_source("auto", tmp_path / "a.jsonl")
    assert isinstance(source, JsonlSource) and all(record.problem for record in source.records())


def test_what_could_be_several_formats_is_not_guessed(tmp_path):
    (tmp_path / "a.csv").write_text("caption,image\na,b.png\n")
    with pytest.raises(
        UserError,
        match=r"is not clear from its columns \('caption', 'image'\); name them, as in --format table --option "
        r"query\.text=COLUMN",
    ):
        open_source("auto", tmp_path / "a.csv")
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(
        UserError, match=r"The format of .*a\.bin is not clear from its name; give it with --format: jsonl, folder"
    ):
        open_source("auto", tmp_path / "a.bin")


def test_mistaken_names_and_values_are_told_with_the_nearest_known_one(tmp_path):
    path = write_swift(tmp_path, 1)
    for name, options, message in [
        ("swft", {}, r"There is no format 'swft'; did you mean 'swift'\? There are auto, jsonl, "),
        (
            "swift",
            {"positive": "each"},
            r"The format swift has no option 'positive'; did you mean 'positives'\? It has positives, negatives, "
            r"min_label\.",
        ),
        ("jsonl", {"x": "1"}, r"The format jsonl has no option 'x'; it has none\."),
        (
            "swift",
            {"positives": "all"},
            r"The option positives=all of the format swift cannot be used: it must be first or each\.",
        ),
        ("swift", {"negatives": "-1"}, r"The option negatives=-1 .* it must be a whole number, 0 or more\."),
        ("swift", {"min_label": "nan"}, r"The option min_label=nan .* it must be a number\."),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(name, path, options)
    with pytest.raises(UserError, match="There is no input .*nowhere"):
        open_source("auto", tmp_path / "nowhere")


def test_options_reach_the_importer_with_their_types(tmp_path):
    source = open_source(
        "swift", write_swift(tmp_path, 3), {"positives": "each", "negatives": "1", "min_label": "0.25"}
    )
    assert (source.positives, source.negatives, source.min_label) == ("each", 1, 0.25)
    (tmp_path / "a.csv").write_text("'c;i\na;b.png\n")
    source = open_source(
        "table", tmp_path / "a.csv", {"query.text": "'c", "target.images": "i", "delimiter": ";", "quotes": "no"}
    )
    assert next(source.records()).record.target.images == ["b.png"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_of_a_format_is_an_argument_of_its_importer(name):
    module, _, source = FORMATS[name].source.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(f"data_tools.sources.{module}"), source)).parameters
    arguments = {*parameters, *(PARTS if name == "table" else ())} - {"columns" if name == "table" else ""}
    assert set(FORMATS[name].options) == arguments - {next(iter(parameters))}


def test_columns_and_files_that_no_format_reads_are_named_once(tmp_path):
    unread = {
        "table": ({"q": "a", "d": "b", "more": "c"}, {"query.text": "q", "target.text": "d"}),
        "columns": ({"anchor": "a", "positive": "b", "more": "c"}, {"columns": "anchor,positive"}),
        "swift": ({"messages": [], "positive_messages": [], "more": 1}, {}),
        "tevatron": ({"query": "a", "positive_passages": [], "more": 1}, {}),
        "mmeb": ({"qry": "a", "pos_text": "b", "more": "c"}, {}),
        "jsonl": ({"target": {"text": "b"}}, {}),
    }
    for name, (line, options) in unread.items():
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        write_jsonl(folder / "a.jsonl", [line, line | ({"late": 1} if name != "jsonl" else {})])
        (folder / "b.ndjson").write_text("{}")
        source = open_source(name, folder, options)
        list(source.records())
        columns = [f"Columns of {folder}/a.jsonl that are not used: 'more', 'late'."] if name != "jsonl" else []
        assert source.notes() == [*columns, *([f"Not read in {folder}: b.ndjson, inner."] if name != "mmeb" else [])], (
            name
        )
    write_jsonl(tmp_path / "swift" / "a.jsonl", [unread["swift"][0] | {"rejected_messages": []}])
    source = open_source("swift", tmp_path / "swift" / "a.jsonl")
    assert "'rejected_messages'" in source.notes()[0] and "'negative_messages'" in source.notes()[1]
