import datetime

import pyarrow
import pytest
from pyarrow import parquet
from tiny_formats import write_parquet

from data_tools.sources.rows import open_rows
from pdfx.errors import UserError


def test_rows_from_any_number_on_are_the_tail_of_all(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"n": n, "t": str(n)} for n in range(7)], group_rows=3)
    write_parquet(tmp_path / "b.parquet", [{"t": str(n), "n": n} for n in range(7, 9)], group_rows=1)
    rows = open_rows(tmp_path)
    everything = list(rows.read())
    assert [row.values for row in everything] == [{"n": n, "t": str(n)} for n in range(9)] and rows.total() == 9
    assert [everything[number].origin for number in (0, 6, 7)] == [
        f"{tmp_path}/a.parquet row 1",
        f"{tmp_path}/a.parquet row 7",
        f"{tmp_path}/b.parquet row 1",
    ]
    for start in range(11):
        assert list(rows.read(start)) == everything[start:]
    assert [row.values for row in rows.read(8, ["n"])] == [{"n": 8}]


def test_a_damaged_row_group_is_a_problem_for_each_of_its_rows_alone(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"t": [f"text {n} " * 20 for n in range(9)]})
    parquet.write_table(table, path, row_group_size=3, use_dictionary=False, compression="zstd")
    place = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = place.data_page_offset
    data[start + 4 : start + place.total_compressed_size] = bytes(place.total_compressed_size - 4)
    path.write_bytes(data)
    rows = list(open_rows(path).read())
    assert [row.problem is None for row in rows] == [True] * 3 + [False] * 3 + [True] * 3
    assert all(row.problem.startswith("its row group is damaged (") for row in rows[3:6])
    assert [row.origin for row in open_rows(path).read(4)] == [f"{path} row {number}" for number in range(5, 10)]


def test_a_value_that_cannot_be_read_is_a_problem_for_its_row_alone(tmp_path):
    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).buffers()
    )
    parquet.write_table(pyarrow.table({"t": texts}), tmp_path / "a.parquet")
    rows = list(open_rows(tmp_path / "a.parquet").read())
    assert [row.values for row in rows] == [
        {"t": "a"},
        None,
        {"t": "c"},
    ] and "holds a value that cannot be read" in rows[1].problem


def test_values_that_json_does_not_know_are_shown_all_the_same(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"day": datetime.date(2020, 1, 2), "bytes": b"abc", "n": None}])
    assert (
        next(open_rows(tmp_path / "a.parquet").read()).raw == '{"day": "2020-01-02", "bytes": "<3 bytes>", "n": null}'
    )


def test_memory_holds_pages_and_no_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"b": [bytes([n % 251]) * 20_000 for n in range(1280)]})
    parquet.write_table(
        table, path, row_group_size=len(table), compression="none", use_dictionary=False, write_batch_size=8
    )
    before, peak = pyarrow.total_allocated_bytes(), 0
    for _ in open_rows(path).read():
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert 0 < peak < path.stat().st_size / 4


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet is not a sound parquet file \("):
        open_rows(path)
