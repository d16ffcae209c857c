"""Records that give no sample: where they go, and when there are too many of them."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from tiny_shards import picture, write_records

from data_tools.build.assembly import BadShare, TooManyBadRecords
from data_tools.build.builder import BuildSettings, build, build_shards
from data_tools.sources.base import SourceRecord
from pdfx.data import ShardedDataset
from pdfx.data.schema import Record, Side
from pdfx.errors import UserError

PAIR = {"query": {"text": "q"}, "target": {"text": "t"}}


class ListSource:
    """Records of a list, as an importer gives them."""

    def __init__(self, records: list[SourceRecord], counts: bool = True):
        self.list, self.counts = records, counts

    def identity(self) -> dict:
        return {"format": "list", "records": len(self.list)}

    def notes(self) -> list[str]:
        return []

    def total(self) -> int | None:
        return len(self.list) if self.counts else None

    def records(self, start: int = 0):
        return iter(self.list[start:])


def text_records(count: int) -> list[SourceRecord]:
    return [
        SourceRecord(f"list number {i}", Record(query=Side(text=f"q{i}"), target=Side(text=f"t{i}")))
        for i in range(count)
    ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_image(name: str) -> dict:
    return {"query": {"images": [name]}, "target": {"text": "t"}}


def test_every_bad_record_is_kept_with_its_place_its_reason_and_its_content(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.png").write_bytes(picture(0))
    (tmp_path / "images" / "cut.png").write_bytes(picture(0)[:100])
    (tmp_path / "images" / "large.png").write_bytes(picture(0, width=100, height=11))
    bad = [
        (
            "unusable record",
            "unknown key 'querry'; did you mean 'query'?",
            {"querry": {"text": "q"}, "target": {"text": "t"}},
        ),
        ("missing image", "there is no image .*images/absent.png", with_image("absent.png")),
        (
            "unusable image",
            "the image .*images/cut.png cannot be used: the PNG picture is truncated or damaged",
            with_image("cut.png"),
        ),
        ("unusable image", "100 x 11 pixels, more than the 1000 allowed", with_image("large.png")),
        ("image path", "the image path '../records.jsonl' leaves the image folder", with_image("../records.jsonl")),
        ("repeated key", "its key 'a' is already that of record number 1", PAIR | {"key": "a"}),
    ]
    records = [with_image("good.png") | {"key": "a"}, *(record for _, _, record in bad), PAIR | {"key": "b"}]
    summary = build_shards(
        write_records(tmp_path, records),
        tmp_path / "images",
        tmp_path / "out",
        max_image_pixels=1000,
        max_bad_share=1.0,
    )
    kept = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [line["kind"] for line in kept] == [kind for kind, _, _ in bad]
    assert [line["number"] for line in kept] == [2, 3, 4, 5, 6, 7]
    assert [json.loads(line["record"]) for line in kept] == [record for _, _, record in bad]
    for line, (_, reason, _) in zip(kept, bad, strict=True):
        assert re.search(reason, line["reason"]), line
        assert line["origin"].endswith(f"records.jsonl line {line['number']}")
    assert summary.rejected == {
        "unusable record": 1,
        "missing image": 1,
        "unusable image": 2,
        "image path": 1,
        "repeated key": 1,
    }
    assert [key for key, _ in ShardedDataset(tmp_path / "out").records()] == ["a", "b"]


def test_what_is_quoted_of_a_record_is_bounded(tmp_path):
    long = "x" * 3_000_000
    bad = [
        {"query": {"text": "q"}, long: 1},
        with_image(long),
        with_image("../" + long),
        PAIR | {"key": long},
        PAIR | {"target_id": long},
    ]
    bad += [{"query": {"text": long}}]
    source = ListSource([SourceRecord(long, problem=long, raw=long)])
    for out, build_it in (
        ("a", lambda out: build_shards(write_records(tmp_path, bad), tmp_path, out)),
        ("b", lambda out: build(source, None, out)),
    ):
        with pytest.raises(UserError) as caught:
            build_it(tmp_path / out)
        assert len(str(caught.value)) < 5000
        kept = (tmp_path / out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        assert kept and all(len(line) < 6000 for line in kept)


@pytest.mark.parametrize("blank", [" ", "\t\r\n", "\u3000", "\u200b\ufeff", "\u2060\u00ad", "\x00\x1f", "\u3164\u2800"])
def test_a_side_without_a_visible_character_is_empty(tmp_path, blank):
    (tmp_path / "a.png").write_bytes(picture(0))
    records = [
        {"query": {"text": blank}, "target": {"text": "t"}},
        {"query": {"text": "q"}, "target": {"text": "t"}, "negatives": [{"text": blank}]},
    ]
    records += [PAIR, {"query": {"text": blank, "images": ["a.png"]}, "target": {"text": "\U0001fae9 \u0301x"}}]
    summary = build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "out", max_bad_share=1)
    assert (summary.samples, summary.rejected) == (2, {"unusable record": 2})
    assert [line["reason"] for line in lines(tmp_path / "out" / "quarantine.jsonl")] == [
        f"'{side}' is empty: its text has no visible character, and there is no image"
        for side in ("query", "negatives.0")
    ]


def test_too_many_bad_records_name_their_kinds_and_the_image_folder(tmp_path):
    records = [with_image("absent.png")] * 3 + [{"query": {"text": " "}, "target": {"text": "t"}}]
    with pytest.raises(UserError) as caught:
        build_shards(write_records(tmp_path, records), tmp_path / "pictures", tmp_path / "out", max_bad_share=1)
    told = str(caught.value)
    assert "By kind: 3 missing image, 1 unusable record." in told
    ahead = "A look at 4 records, not into their pictures, finds: 3 missing image, 1 unusable record"
    with pytest.raises(TooManyBadRecords, match=f"2 of the 2 records read .* {ahead}"):
        build_shards(write_records(tmp_path, records), tmp_path / "pictures", tmp_path / "again")
    assert f"Pictures are looked up in {tmp_path}/pictures; name another folder with --images" in told
    assert "line 1: there is no image" in told and "line 4: 'query' is empty" in told and "line 2" not in told


def test_text_that_is_no_unicode_reaches_the_quarantine_as_readable_json(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"query": "\xff\xfe"}\n' + json.dumps(PAIR).encode())
    build_shards(tmp_path / "r.jsonl", tmp_path, tmp_path / "out")
    source = ListSource([*text_records(1), SourceRecord("list number 1", problem="it is odd", raw="lone \udc80")])
    build(source, None, tmp_path / "other", BuildSettings())
    assert len(lines(tmp_path / "out" / "quarantine.jsonl")) == 1
    assert lines(tmp_path / "other" / "quarantine.jsonl")[0]["record"] == "lone \udc80"


def test_without_bad_records_there_is_no_quarantine_file(tmp_path):
    build_shards(write_records(tmp_path, [PAIR]), tmp_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.idx.npy",
        "00000.tar",
        "00000_stats.json",
        "build.jsonl",
        "index.json",
    ]


def test_a_single_bad_record_is_forgiven_unless_the_share_is_0(tmp_path):
    path = write_records(tmp_path, [with_image("absent.png"), PAIR])
    with pytest.raises(
        TooManyBadRecords,
        match="1 of the 1 records read cannot be used, and the share that may is 0. .*line 1: there is no image",
    ):
        build_shards(path, tmp_path, tmp_path / "strict", max_bad_share=0)
    assert build_shards(path, tmp_path, tmp_path / "out").samples == 1


def test_too_many_bad_records_stop_the_build_and_a_larger_share_goes_on_with_what_is_finished(tmp_path):
    records = [PAIR] * 10 + [with_image("absent.png")] * 4 + [PAIR] * 6
    path = write_records(tmp_path, records)
    with pytest.raises(TooManyBadRecords) as caught:
        build_shards(path, tmp_path, tmp_path / "out", 4, max_bad_share=0.1)
    assert "3 of the 13 records read" in str(caught.value) and str(tmp_path / "out" / "quarantine.jsonl") in str(
        caught.value
    )
    assert len(lines(tmp_path / "out" / "quarantine.jsonl")) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 2
    assert build_shards(path, tmp_path, tmp_path / "out", 4, max_bad_share=0.2).samples == 16
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    build_shards(path, tmp_path, tmp_path / "undisturbed", 4, max_bad_share=0.2)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "undisturbed").iterdir()
    }


def test_too_many_bad_records_after_the_last_sample_stop_the_build_too(tmp_path):
    bad = [SourceRecord(f"list number {i}", problem="it is odd") for i in range(4)]
    source = ListSource([*text_records(16), *bad], counts=False)
    with pytest.raises(TooManyBadRecords, match="4 of the 20 records read"):
        build(source, None, tmp_path / "out", BuildSettings(max_bad_share=0.1))
    assert not (tmp_path / "out" / "index.json").exists()
    assert build(source, None, tmp_path / "out", BuildSettings(max_bad_share=0.2)).samples == 16


@pytest.mark.parametrize(
    "share, total, bad, read, is_too_many",
    [
        (0.01, 1000, 10, 10, False),
        (0.01, 1000, 11, 11, True),
        (0.01, None, 10, 11, False),
        (0.01, None, 11, 11, True),
        (0.01, None, 19, 2000, False),
        (0.01, None, 21, 2000, True),
        (0.0, 1000, 0, 10, False),
        (1.0, 2, 2, 2, False),
    ],
)
def test_the_share_is_that_of_all_records_where_their_number_is_known(tmp_path, share, total, bad, read, is_too_many):
    (tmp_path / "quarantine.jsonl").touch()
    judge = BadShare(share, total, tmp_path / "quarantine.jsonl")
    if is_too_many:
        with pytest.raises(TooManyBadRecords):
            judge.check(bad, read)
    else:
        judge.check(bad, read)


def test_a_build_without_any_sample_says_why(tmp_path):
    with pytest.raises(
        UserError,
        match=r"None of the 1 records gives a sample. By kind: 1 missing image. .* line 1: there is no image "
        r".*absent.png\.",
    ):
        build_shards(write_records(tmp_path, [with_image("absent.png")]), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_after_a_build_without_shards_another_one_may_begin_in_its_place(tmp_path):
    path = write_records(tmp_path, [with_image("0.png")] * 3)
    with pytest.raises(TooManyBadRecords):
        build_shards(path, tmp_path / "wrong", tmp_path / "out")
    (tmp_path / "0.png").write_bytes(picture(0))
    assert build_shards(path, tmp_path, tmp_path / "out").samples == 3
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()


def test_pictures_come_from_the_source_itself_from_files_and_from_tars(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "file.png").write_bytes(picture(0))
    with tarfile.open(tmp_path / "images" / "all.tar", "w") as archive:
        member = tarfile.TarInfo("./cats/1.png")
        member.size = len(picture(1))
        archive.addfile(member, io.BytesIO(picture(1)))
    names = ["file.png", "all.tar/cats/1.png", "held"]
    record = Record(query=Side(images=names), target=Side(text="t"))
    build(
        ListSource([SourceRecord("list number 0", record, pictures={"held": picture(2)})]),
        tmp_path / "images",
        tmp_path / "out",
    )
    _, _, members = ShardedDataset(tmp_path / "out").shards[0].raw(0)
    assert [members[f"query.{i}.png"] for i in range(3)] == [picture(i) for i in range(3)]


def test_what_is_not_read_of_shards_does_not_disturb_their_readers(tmp_path):
    build_shards(write_records(tmp_path, [PAIR, with_image("absent.png")]), tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "quarantine.jsonl").exists()
    assert len(ShardedDataset(tmp_path / "out")) == 1
