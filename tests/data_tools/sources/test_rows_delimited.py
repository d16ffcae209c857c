import csv
import gzip

import pytest

from data_tools.sources import delimited as rows_delimited
from data_tools.sources import jsonl
from data_tools.sources.rows import open_rows
from pdfx.errors import UserError


def write(path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_cells_are_text_with_their_quotes_line_breaks_and_separators(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\n007,"a, b"\n1,"two\nlines ""quoted"""\n\n,\n')
    rows = list(open_rows(path).read())
    assert [row.values for row in rows] == [
        {"id": "007", "text": "a, b"},
        {"id": "1", "text": 'two\nlines "quoted"'},
        {"id": "", "text": ""},
    ]
    assert [row.origin for row in rows] == [f"{path} line 2", f"{path} line 3", f"{path} line 6"]


def test_tabs_other_delimiters_a_byte_order_mark_and_packing_are_read(tmp_path):
    expected = [{"a": "1", "b": "2,3"}]
    text = b"\xef\xbb\xbfa\tb\r\n1\t2,3\r\n"
    assert [row.values for row in open_rows(write(tmp_path / "a.tsv", text)).read()] == expected
    assert [row.values for row in open_rows(write(tmp_path / "b.TSV.gz", gzip.compress(text))).read()] == expected
    assert [
        row.values for row in open_rows(write(tmp_path / "c.csv", "a;b\n1;2,3\n"), delimiter=";").read()
    ] == expected


def test_quotation_marks_can_be_part_of_the_text(tmp_path):
    path = write(tmp_path / "a.tsv", 'a\tb\n"x" is\ty\n')
    assert [row.values for row in open_rows(path, quotes=False).read()] == [{"a": '"x" is', "b": "y"}]
    assert [row.problem for row in open_rows(path).read()] == [
        "it is not a valid row ('\t' expected after '\"'); if quotation marks are part of the text, read it with "
        "quotes=no"
    ]


def test_malformed_rows_are_one_problem_each_and_their_neighbours_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LINE_LIMIT", 1 << 20)
    monkeypatch.setattr(rows_delimited, "_CELL_LIMIT", 1 << 18)
    bad = [b"1", b"1,2,3", b"\xff,2", b'"a"b,2', b"x" * (1 << 19) + b",2", b"1," + b"y" * (1 << 21)]
    path = write(
        tmp_path / "a.csv", b"a,b\n" + b"".join(b"good,row\n" + line + b"\n" for line in bad) + b'good,row\n"open,row\n'
    )
    rows = list(open_rows(path).read())
    assert [row.problem is None for row in rows] == [True, False] * 7
    problems = [row.problem for row in rows if row.problem]
    assert problems[:3] == [
        "it has 1 cells, and the first row names 2 columns",
        "it has 3 cells, and the first row names 2 columns",
        "it is not valid UTF-8",
    ]
    assert (
        "expected after" in problems[3]
        and "field limit" in problems[4]
        and problems[5] == "it is a line of more than 1 MiB"
    )
    assert "unexpected end of data" in problems[6]
    assert [row.origin for row in rows] == [f"{path} line {number}" for number in range(2, 16)]
    assert open_rows(path).total() == 14 and all(len(row.raw) < 2100 for row in rows)
    for start in range(16):
        assert [row.origin for row in open_rows(path).read(start)] == [row.origin for row in rows[start:]]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "has no first row that names its columns"),
        (b"\n1,2\n", "has no first row that names its columns"),
        (b"a,a\n", "names the column 'a' twice"),
        ("a,b\n".encode("utf-16"), r"cannot be read \(it is UTF-16\); save it as UTF-8"),
        ("a,b\n".encode("utf-16-le"), r"cannot be read \(it is UTF-16\); save it as UTF-8"),
        (b"\xff\n", "cannot be read .*; save it as UTF-8"),
        (b'"a,b\n1,2\n', "cannot be read .*; save it as UTF-8, with quotation marks closed"),
        (b"a;b\n1;2\n", r"is a single cell, 'a;b'; name what separates cells with delimiter=';'"),
    ],
)
def test_a_file_without_a_sound_first_row_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        open_rows(write(tmp_path / "a.csv", content))


def test_a_delimiter_of_two_characters_is_refused(tmp_path):
    with pytest.raises(UserError, match="The delimiter ', ' must be one character"):
        open_rows(write(tmp_path / "a.csv", "a,b\n"), delimiter=", ")


def test_the_columns_of_several_files_are_those_that_all_have(tmp_path):
    write(tmp_path / "a.csv", "x,y\n1,2\n")
    write(tmp_path / "b.csv", "y,z,x\n3,4,5\n")
    rows = open_rows(tmp_path)
    assert rows.columns == ["x", "y"] and [(row.values["x"], row.values["y"]) for row in rows.read()] == [
        ("1", "2"),
        ("5", "3"),
    ]
    write(tmp_path / "c.jsonl", "{}")
    with pytest.raises(UserError, match=r"b\.csv is CSV or TSV and .*c\.jsonl is JSONL; give files of one kind"):
        open_rows(tmp_path)


def test_a_long_cell_is_read_whatever_other_code_allows_the_csv_module(tmp_path):
    csv.field_size_limit(10)
    assert len(next(open_rows(write(tmp_path / "a.csv", "a\n" + "x" * 200_000)).read()).values["a"]) == 200_000
