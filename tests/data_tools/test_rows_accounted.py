"""Tables with damage put in at random: every sound row becomes its sample, every damaged one is in the quarantine, and
nothing else is counted."""

import csv
import io
import json
import random
import subprocess
import sys

import pyarrow
import pytest
from peak_memory import FOR_CHILDREN
from pyarrow import parquet

from data_tools.build.assembly import LEFT_OUT
from data_tools.build.builder import BuildSettings, build
from data_tools.sources.registry import open_source
from data_tools.sources.rows import open_rows
from pdfx.data import ShardedDataset

HEADER = ["id", "query", "doc"]
LINE_ENDS = ["\n", "\r\n", "\r"]
ROWS = 40


def text(draw: random.Random, number: int) -> str:
    """A text of one line or several, with what writers must quote, and never one that reads like a row."""
    words = ["word", "a, b", 'say "x"', "1/2", "caf\u00e9"] + [
        "line\nbreak",
        "para\n\ngraph, here",
        "\nat the start",
    ] * (draw.random() < 0.3)
    return " ".join([f"t{number}", *draw.choices(words, k=draw.randint(1, 4)), "end"])


def written(cells: list[str], delimiter: str, end: str) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + end


FAULTS = {
    "a stray mark at the start of a row": lambda line, of: b'"' + line,
    "a stray mark at the start of a cell": lambda line, of: line.replace(of, of + b'"', 1),
    "a cell too few": lambda line, of: line.replace(of, b"+", 1),
    "a cell too many": lambda line, of: line[:-1] + of + b"more\n",
    "bytes that are not UTF-8": lambda line, of: b"\xff" + line,
    "NUL bytes": lambda line, of: b"\0\0" + line,
    "the first row again": lambda line, of: of.join(name.encode() for name in HEADER) + b"\n",
    "a quoted cell and more": lambda line, of: b'"quoted" more' + line,
}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ending, delimiter", [(".csv", ","), (".tsv", "\t")])
def test_a_damaged_line_of_a_delimited_file_costs_its_own_row_and_no_other(tmp_path, seed, ending, delimiter):
    draw = random.Random(f"{seed} {ending}")
    content, line, expected = written(HEADER, delimiter, "\n").encode(), 2, []
    for number in range(ROWS):
        if draw.random() < 0.15:
            of = delimiter.encode()
            plain = of.join([f"i{number}".encode(), b"plain words", b"more of them"]) + b"\n"
            data, values = FAULTS[draw.choice(list(FAULTS))](plain, of), None
        else:
            cells = [f"i{number}", text(draw, number), text(draw, number)]
            data = written(cells, delimiter, draw.choice(LINE_ENDS)).encode()
            values = dict(zip(HEADER, cells, strict=True))
        expected.append((line, values))
        content += data
        line += len(data.splitlines())
    path = tmp_path / f"table{ending}"
    path.write_bytes(content)
    rows = list(open_rows(path).read())
    assert [(row.origin, row.values) for row in rows] == [
        (f"{path} line {number}", values) for number, values in expected
    ]
    assert all(row.problem for row in rows if row.values is None) and open_rows(path).total() == ROWS
    for start in (1, ROWS // 2, ROWS):
        assert [row.origin for row in open_rows(path).read(start)] == [row.origin for row in rows[start:]]


def test_one_stray_mark_in_a_thousand_rows_costs_one_row(tmp_path):
    for place in ('"q500,d500', 'q500,"d500'):
        for closed_at in (None, 502, 503, 900):
            lines = [f"q{i},d{i}" if i != closed_at else f'q{i},{i}"' for i in range(1000)]
            lines[500] = place
            (tmp_path / "a.csv").write_text("\n".join(["q,d", *lines]))
            rows = list(open_rows(tmp_path / "a.csv").read())
            assert [row.origin for row in rows if row.problem] == [f"{tmp_path}/a.csv line 502"], (place, closed_at)
            assert [row.values["q"] for row in rows if row.values] == [f"q{i}" for i in range(1000) if i != 500]


def test_a_stray_mark_in_a_table_with_spaces_after_commas_costs_one_row(tmp_path):
    lines = [f"how tall is {i}?, he is {i} feet" for i in range(80)]
    lines[40], lines[79] = 'big one?,"quoted start', 'how tall?, 5 foot 6"'
    (tmp_path / "a.csv").write_text("\n".join(["query,target", *lines]))
    rows = list(open_rows(tmp_path / "a.csv").read())
    assert len(rows) == 80 and [row.origin for row in rows if row.problem] == [f"{tmp_path}/a.csv line 42"]


def test_long_texts_with_line_breaks_stay_whole(tmp_path):
    prose = [f"Line {i}, of prose, with commas." if i % 3 else "" for i in range(900)]
    for lines in (
        prose,
        ["One line", "another, with a comma"],
        ["1,000 dollars", "2,000 dollars, or so", "end"],
        ["\ttabs", "", "more"],
    ):
        stream = io.StringIO()
        csv.writer(stream).writerows([["q", "d"], ["first", "\n".join(lines)], ["second", "plain"]])
        (tmp_path / "a.csv").write_text(stream.getvalue())
        table = open_rows(tmp_path / "a.csv")
        assert [row.values["d"] for row in table.read()] == ["\n".join(lines), "plain"]
        assert table.remarks == [
            f"In {tmp_path}/a.csv, 1 rows have cells of several lines; the first of them begins in line 2."
        ]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({name: [f"{name} {n} " * 20 for n in range(ROWS)] for name in ("query", "doc")})
    parquet.write_table(table, path, row_group_size=7, use_dictionary=False, compression="zstd")
    place = parquet.ParquetFile(path).metadata.row_group(2).column(1)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + 4 : place.data_page_offset + place.total_compressed_size] = bytes(
        place.total_compressed_size - 4
    )
    path.write_bytes(data)
    source = open_source("table", path, {"query.text": "query", "target.text": "doc"})
    summary = build(source, tmp_path, tmp_path / "out", BuildSettings(max_bad_share=1))
    assert (summary.records, summary.samples, summary.rejected) == (ROWS, ROWS - 7, {"unusable record": 7})
    stored = [record.query.text for _, record in ShardedDataset(tmp_path / "out").records()]
    assert stored == [f"query {n} " * 20 for n in range(ROWS) if n // 7 != 2]


BOUNDED = """
import sys
from pathlib import Path
from peak_memory import begin, peak
from data_tools.build.builder import BuildSettings, build
from data_tools.sources import jsonl
from data_tools.sources.registry import open_source

jsonl.LINE_LIMIT = 1 << 22
begin()
before = peak()
folder, *names = sys.argv[1:]
for name in names:
    options = {"query.text": "q", "target.text": "d"}
    source = open_source("table", Path(folder, name), options)
    summary = build(source, None, Path(folder, name + ".out"), BuildSettings())
    assert (summary.records, summary.samples) == (3, 2), (name, summary)
print((peak() - before) >> 20)
"""


@pytest.mark.process
def test_a_line_of_any_length_costs_bounded_memory_and_one_row(tmp_path):
    """128 MiB without a line break between two sound rows, in every format of lines, with a limit of 4 MiB."""
    contents = {
        "a.csv": ("q,d\nx,y\n", "z,", "\nx2,y2\n"),
        "a.tsv": ("q\td\nx\ty\n", '"', "\nx2\ty2\n"),
        "a.jsonl": ('{"q": "x", "d": "y"}\n', '{"q": "', '\n{"q": "x2", "d": "y2"}\n'),
    }
    for name, (before, start, after) in contents.items():
        with (tmp_path / name).open("wb") as stream:
            stream.write((before + start).encode())
            stream.truncate(1 << 27)
            stream.seek(0, 2)
            stream.write(after.encode())
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, tmp_path, *contents],
        env=FOR_CHILDREN,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60, "MiB"


BAD_TEXTS = ["", " \t\u3000\u200b\ufeff", "\u2060\x00\x1f", "x" * 1_000_001]
CUT, TWICE, LABEL = "cut", "twice", "label"


def table_line(query, doc, label):
    return {"query": query, "doc": doc, "label": label}


def swift_line(query, doc, label):
    return {
        "messages": [{"role": "user", "content": query}],
        "positive_messages": [[{"role": "user", "content": doc}]],
        "label": label,
    }


LAYOUTS = {
    "jsonl": (lambda query, doc, label: {"query": {"text": query}, "target": {"text": doc}}, {}),
    "table": (table_line, {"query.text": "query", "target.text": "doc"}),
    "columns": (table_line, {"columns": "query,doc", "label": "label", "min_label": "0.5"}),
    "swift": (swift_line, {}),
    "tevatron": (
        lambda query, doc, label: {"query_text": query, "positive_passages": [{"docid": doc, "text": doc}]},
        {},
    ),
    "mmeb": (lambda query, doc, label: {"qry": query, "pos_text": doc}, {}),
}


def write_lines(path, lines: list[dict], faults: list, draw: random.Random) -> None:
    """JSONL in which a line may be cut, or hold two objects; with blank lines, which do not count, and mixed ends."""
    stream = []
    for line, fault in zip(lines, faults, strict=True):
        data = json.dumps(line)
        data = {CUT: data[: len(data) // 2], TWICE: data + data}.get(fault, data)
        stream.append(data + draw.choice(LINE_ENDS) + "\n" * (draw.random() < 0.1))
    path.write_bytes("".join(stream).encode())


def write_table(path, lines: list[dict], faults: list, draw: random.Random) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(lines), path, row_group_size=7)
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.DictWriter(stream, list(lines[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writeheader()
            rows.writerows(lines)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "name, ending",
    [
        *((name, ".jsonl") for name in LAYOUTS),
        *((name, ending) for name in ("table", "columns", "mmeb") for ending in (".csv", ".tsv", ".parquet")),
    ],
)
def test_rows_in_are_samples_and_quarantined_and_left_out_in_every_format(tmp_path, name, ending, seed):
    draw = random.Random(f"{name} {ending} {seed}")
    layout, options = LAYOUTS[name]
    lines, faults, sound = [], [], []
    for number in range(ROWS):
        fault = draw.choice([CUT, TWICE, LABEL, *BAD_TEXTS]) if draw.random() < 0.3 else None
        fault = (
            None
            if fault in (CUT, TWICE) and ending != ".jsonl" or fault == LABEL and name not in ("columns", "swift")
            else fault
        )
        query, doc = text(draw, number), text(draw, -number)
        sound += [(query, doc)] if fault is None else []
        bad = fault if fault in BAD_TEXTS else doc
        lines.append(
            layout(
                *draw.choice([(query, bad), (bad, query)]) if fault in BAD_TEXTS else (query, doc),
                0.1 if fault == LABEL else 0.9,
            )
        )
        faults.append(fault)
    path = tmp_path / f"rows{ending}"
    (write_lines if ending == ".jsonl" else write_table)(path, lines, faults, draw)
    summary = build(
        open_source(name, path, options),
        tmp_path,
        tmp_path / "out",
        BuildSettings(max_bad_share=1, samples_per_shard=9),
    )
    quarantined = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    left_out = [line for line in quarantined if line["kind"] in LEFT_OUT]
    stored = [(record.query.text, record.target.text) for _, record in ShardedDataset(tmp_path / "out").records()]
    assert stored == [
        (query.strip(), doc.strip()) if name in ("mmeb", "swift") else (query, doc) for query, doc in sound
    ]
    assert (summary.records, summary.samples, len(quarantined)) == (ROWS, len(sound), ROWS - len(sound))
    assert [line["number"] for line in left_out] == [number for number, fault in enumerate(faults, 1) if fault == LABEL]
    assert [line["number"] for line in quarantined] == [
        number for number, fault in enumerate(faults, 1) if fault is not None
    ]
    assert all(len(json.dumps(line)) < 20_000 for line in quarantined)
