import inspect
import json
import os
import re

import pytest
from command_line import run_pdfx, told
from tiny_shards import picture, write_records

from data_tools.build.settings import BuildSettings, Encoding
from pdfx.cli.build import build
from pdfx.data import ShardedDataset
from pdfx.host.files import parse_size

PAIR = {"query": {"text": "q"}, "target": {"text": "t"}}
BROKEN = {"query": {"images": ["absent.png"]}, "target": {"text": "t"}}


@pytest.fixture
def pdfx(capfd):
    return lambda *words: run_pdfx(capfd, *words)


def test_the_options_have_the_defaults_of_the_settings():
    defaults = {name: option.default for name, option in inspect.signature(build).parameters.items()}
    assert parse_size(defaults["shard_bytes"]) == BuildSettings.shard_bytes
    assert defaults["quality"] == Encoding.quality
    for name in ("samples_per_shard", "deduplicate", "drop_leaked", "max_bad_share", "overwrite"):
        assert defaults[name] == getattr(BuildSettings, name)


def test_the_summary_counts_what_was_built_and_what_was_not(pdfx, tmp_path):
    records = write_records(tmp_path, [PAIR, PAIR, {"query": {"text": "r"}, "target": {"text": "t"}}, BROKEN])
    (tmp_path / "e").mkdir()
    assert (
        pdfx("shards", "build", write_records(tmp_path / "e", [PAIR]), "--out", tmp_path / "test", "--workers", "1")[0]
        == 0
    )
    out = tmp_path / "train"
    words = (
        "shards",
        "build",
        records,
        "--out",
        out,
        "--deduplicate",
        "--evaluation",
        tmp_path / "test",
        "--leak",
        "query",
        "--workers",
        "1",
    )
    code, text, _ = pdfx(*words)
    first, second, third = text.splitlines()
    assert code == 0
    assert re.fullmatch(rf"{out}: 2 samples in 1 shards, 10240 bytes, fingerprint [0-9a-f]{{12}}", first)
    counts = "4 records: 2 samples, 1 that cannot be used (1 missing image), 1 left out on purpose (1 duplicate)."
    assert second == f"{counts} {out}/quarantine.jsonl lists those that are not samples."
    assert third.startswith(
        f"1 records share something with an evaluation set (1 query); {out}/leakage.jsonl lists them; they are kept"
    )
    code, text, _ = pdfx(*words)
    assert code == 0 and text.splitlines()[0] == first.replace(f"{out}:", f"{out} was complete already:")
    code, text, _ = pdfx(*words, "--drop-leaked", "--overwrite", "--json", "-")
    summary = json.loads(text)
    assert (code, summary["samples"], summary["rejected"]) == (0, 1, {"leaked": 2, "missing image": 1})
    assert (summary["leaks"], summary["was_finished"]) == ({"records": 2, "query": 2}, False)


def test_too_many_bad_records_end_with_1_and_one_sentence_and_a_larger_share_goes_on(pdfx, tmp_path):
    words = (
        "shards",
        "build",
        write_records(tmp_path, [PAIR] * 4 + [BROKEN] * 2),
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
    )
    code, text, error = pdfx(*words)
    assert (code, text) == (1, "")
    assert (
        len(error.splitlines()) == 1
        and "2 of the 6 records read cannot be used" in error
        and "--max-bad-share" in error
    )
    assert pdfx(*words, "--max-bad-share", "0.5")[0] == 0
    assert len(ShardedDataset(tmp_path / "out")) == 4


def test_every_setting_reaches_the_build(pdfx, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(0, 40, 20))
    (tmp_path / "images" / "large.png").write_bytes(picture(1, 60, 60))
    records = [{"query": {"images": [name]}, "target": {"text": "t"}} for name in ["a.png"] * 5 + ["large.png"]]
    words = [
        "--images",
        tmp_path / "images",
        "--samples-per-shard",
        "3",
        "--shard-bytes",
        "5KiB",
        "--resize",
        "10",
        "--image-format",
        "webp",
    ]
    words += ["--quality", "50", "--max-image-pixels", "1000", "--workers", "0", "--format", "jsonl"]
    assert pdfx("shards", "build", write_records(tmp_path, records), "--out", tmp_path / "out", *words)[0] == 0
    dataset = ShardedDataset(tmp_path / "out")
    # A sample has a record and a small picture, of two blocks each.
    assert dataset.shard_sizes == [2, 2, 1]
    assert [image.size for image in dataset.read(0).query["images"]] == [(10, 5)]
    assert next(iter(dataset.records()))[1].query.images == ["query.0.webp"]
    settings = json.loads((tmp_path / "out" / "build.jsonl").read_text().splitlines()[0])["identity"]["settings"]
    assert (settings["quality"], settings["samples_per_shard"]) == (50, 3)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--option", "corpus"], "The option 'corpus' has no value; write it as NAME=VALUE."),
        (["--option", "corpus=a", "--option", "corpus=b"], "The option 'corpus' is given twice, as 'a' and as 'b'"),
        (["--drop-leaked"], "can only be left out if evaluation shards are given"),
        (["--evaluation", "absent"], "There is no directory of shards at absent"),
        (["--format", "jsnl"], "did you mean 'jsonl'"),
        (["--quality", "50"], "quality has no effect, because no picture is re-encoded"),
        (["--leak", "query"], "has no effect without evaluation shards"),
        (["--format", "table", "--option", "delimiter=;"], "delimiter and quotes are for CSV and TSV"),
        (
            ["--format", "columns", "--option", "columns=query,target", "--option", "min_label=1"],
            "min_label=1 has no effect",
        ),
        (
            ["--format", "columns", "--option", "columns=query,target", "--option", "images=key"],
            "images=key names 'key', which is none of the columns",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence_and_write_nothing(pdfx, tmp_path, words, sentence):
    assert sentence in told(
        pdfx("shards", "build", write_records(tmp_path, [PAIR | {"key": "k"}]), "--out", tmp_path / "out", *words)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.process
def test_a_key_that_a_record_has_twice_and_names_that_are_not_utf8_are_told_and_lose_nothing_else(pdfx, tmp_path):
    lines = [
        '{"query": {"text": "a"}, "target": {"text": "b"}}',
        '{"query": {"text": "a"}, "query": {"text": "z"}, "target": {"text": "b"}}',
    ]
    source = tmp_path / os.fsdecode(b"d\xe4.jsonl")
    source.write_text("\n".join(lines))
    code, out, error = pdfx("shards", "build", source, "--out", tmp_path / "out")
    assert code == 0, error
    assert "1 samples" in out and "the key 'query' is there twice" in (tmp_path / "out/quarantine.jsonl").read_text()
    code, out, error = pdfx("shards", "build", source, "--out", tmp_path / "out")
    assert code == 0 and "complete already" in out, error


def test_rows_below_min_label_are_left_out_and_never_too_many(pdfx, tmp_path):
    (tmp_path / "a.csv").write_text("anchor,positive,score,source\n" + "q,d,0.9,x\n" * 2 + "q,d,0.1,x\n" * 8)
    words = [
        "--option",
        "min_label=0.5",
        "--option",
        "columns=anchor,positive",
        "--max-bad-share",
        "0",
        "--workers",
        "1",
    ]
    code, text, _ = pdfx("shards", "build", tmp_path / "a.csv", "--out", tmp_path / "out", *words)
    assert code == 0
    assert "10 records: 2 samples, 0 that cannot be used, 8 left out on purpose (8 below min_label)." in text
    assert f"Columns of {tmp_path}/a.csv that are not used: 'source'." in text


@pytest.mark.parametrize("format", ["auto", "jsonl", "table", "folder"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_place_of_records_is_refused_at_once(pdfx, tmp_path, kind, format):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    words = [
        "--format",
        format,
        *(["--option", "query.text=q", "--option", "target.text=t"] if format == "table" else []),
    ]
    told(pdfx("shards", "build", tmp_path / f"{kind}.jsonl", "--out", tmp_path / "out", *words))


@pytest.mark.parametrize(
    "command", [("describe",), ("check",), ("split", "--out", "a=0.5", "--out", "b=0.5"), ("merge", "--out", "c")]
)
def test_records_in_place_of_shards_are_told_with_the_command_that_is_wanted(pdfx, tmp_path, command):
    records = write_records(tmp_path, [PAIR])
    _, text, error = pdfx("shards", command[0], records, *command[1:])
    assert (
        f"{records} is a file, and shards are a directory" in text + error
        and f"pdfx shards build {records}" in text + error
    )


def test_an_image_folder_that_is_not_there_is_named(pdfx, tmp_path):
    words = (
        "shards",
        "build",
        write_records(tmp_path, [PAIR]),
        "--out",
        tmp_path / "out",
        "--images",
        tmp_path / "nowhere",
    )
    assert f"There is no image folder {tmp_path}/nowhere" in told(pdfx(*words))


def test_help_tells_the_exit_codes(pdfx):
    _, text, _ = pdfx("shards", "build", "--help")
    assert "Ends with 0 if the shards are built, 1 if too many" in " ".join(text.split())
