import gzip
import json

import pytest

from data_tools.sources import jsonl
from data_tools.sources.jsonl import JsonlSource
from pdfx.errors import UserError

GOOD = {"query": {"text": "q"}, "target": {"text": "t"}}


def write_lines(path, *given: bytes | dict):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in given) + b"\n"
    )
    return path


@pytest.mark.parametrize(
    "line, problem",
    [
        (b"{", "it is not valid JSON (EOF while parsing an object at column 1)"),
        (b'{"query": {"text": "\xff"}}', "not valid JSON"),
        (b'{"query": {"text": "\\ud800"}, "target": {"text": "t"}}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\x00\x01", "not valid JSON"),
        (b"[1]", "it is [1]: Input should be an object"),
        (b"null", "it is None: Input should be an object"),
        ({"querry": {"text": "q"}, "target": {"text": "t"}}, "unknown key 'querry'; did you mean 'query'?"),
        ({"query": {"txt": "q"}, "target": {"text": "t"}}, "unknown key 'query.txt'; did you mean 'text'?"),
        (GOOD | {"negatives": [{"image": ["a"]}]}, "unknown key 'negatives.0.image'; did you mean 'images'?"),
        ({"query": {"text": "q"}}, "the key 'target' is missing"),
        ({"query": {"text": 5}, "target": {"text": "t"}}, "'query.text' is 5: Input should be a valid string"),
        (
            {"query": {"text": "q", "images": "a.png"}, "target": {"text": "t"}},
            "'query.images' is 'a.png': Input should be a valid array",
        ),
        ({"query": {}, "target": {"text": "t"}}, "in 'query', there is neither a text nor an image"),
        (GOOD | {"key": "a.b"}, "'key' is 'a.b': a key is 1 to 64 letters"),
        (GOOD | {"key": "../a"}, "'key' is '../a': a key is 1 to 64 letters"),
        (GOOD | {"key": "x" * 65}, "a key is 1 to 64 letters"),
        (GOOD | {"target_id": ""}, "'target_id' is ''"),
    ],
)
def test_a_bad_line_is_a_problem_with_its_key_and_its_neighbours_are_read(tmp_path, line, problem):
    path = write_lines(tmp_path / "records.jsonl", GOOD, b"", line, GOOD)
    first, bad, last = JsonlSource(path).records()
    assert first.record == last.record and first.record.query.text == "q" and first.problem is None
    assert bad.record is None and problem in bad.problem and not bad.problem.endswith(".") and "\n" not in bad.problem
    assert (first.origin, bad.origin, last.origin) == (f"{path} line 1", f"{path} line 3", f"{path} line 4")
    assert bad.raw and len(bad.raw) < 2100


def test_a_line_without_end_is_a_problem_that_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LINE_LIMIT", 1 << 20)
    path = write_lines(tmp_path / "records.jsonl", GOOD, b"x" * (3 << 20), GOOD)
    assert [record.problem for record in JsonlSource(path).records()] == [None, "it is a line of more than 1 MiB", None]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n  \n" + json.dumps(GOOD).encode())
    source = JsonlSource(path)
    assert [record.problem for record in source.records()] == [None, None] and source.total() == 2


def test_a_directory_gives_its_files_by_name_packed_ones_too(tmp_path):
    write_lines(tmp_path / "b.jsonl", GOOD | {"key": "b"})
    write_lines(tmp_path / "a.jsonl", GOOD | {"key": "a"})
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD | {"key": "c"}).encode()))
    (tmp_path / "notes.txt").write_text("no records")
    (tmp_path / ".hidden.jsonl").write_text("no records")
    assert [record.record.key for record in JsonlSource(tmp_path).records()] == ["a", "b", "c"]
    assert [record.record.key for record in JsonlSource([tmp_path / "c.jsonl.gz", tmp_path / "a.jsonl"]).records()] == [
        "c",
        "a",
    ]


def test_records_from_any_number_on_are_the_tail_of_all(tmp_path):
    write_lines(tmp_path / "a.jsonl", GOOD | {"key": "a"}, b"", b"{", GOOD | {"key": "b"})
    write_lines(tmp_path / "b.jsonl", GOOD | {"key": "c"})
    source = JsonlSource(tmp_path)
    everything = list(source.records())
    assert source.total() == len(everything) == 4
    for start in range(6):
        assert list(source.records(start)) == everything[start:]


def test_the_identity_tells_files_apart(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    before = JsonlSource(path).identity()
    assert before == JsonlSource(tmp_path).identity() and json.loads(json.dumps(before)) == before
    write_lines(path, GOOD, GOOD)
    assert JsonlSource(path).identity() != before


def test_a_damaged_packed_file_is_named_and_never_read_as_a_shorter_one(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(json.dumps(GOOD | {"key": f"k{i}"}).encode() for i in range(1000)))[:-20])
    with pytest.raises(UserError, match=r"The compressed file .*a\.jsonl\.gz is damaged"):
        list(JsonlSource(path).records())
    assert JsonlSource(path).total() is None


def test_missing_input_is_told(tmp_path):
    with pytest.raises(UserError, match=r"The input .*nowhere\.jsonl cannot be read \(No such file or directory\)"):
        JsonlSource(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"There is no \.jsonl or \.jsonl\.gz file in the directory"):
        JsonlSource(tmp_path)
    with pytest.raises(UserError, match="No input is given"):
        JsonlSource([])
