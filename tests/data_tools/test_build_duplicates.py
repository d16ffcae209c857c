"""Leaving out what is there twice, and finding what an evaluation set holds too."""

import json
from pathlib import Path

import pytest
from tiny_shards import picture, write_records

from data_tools.build.builder import BuildSettings, build, build_shards
from data_tools.build.settings import Encoding
from data_tools.sources.jsonl import JsonlSource
from pdfx.data import ShardedDataset
from pdfx.errors import UserError


def pair(query: dict | str, target: dict | str, **further) -> dict:
    return {
        "query": {"text": query} if isinstance(query, str) else query,
        "target": {"text": target} if isinstance(target, str) else target,
        **further,
    }


def keys(shards: Path) -> list[str]:
    return [key for key, _ in ShardedDataset(shards).records()]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, seed in (("a.png", 0), ("copy.png", 0), ("b.png", 1)):
        (tmp_path / name).write_bytes(picture(seed))
    return tmp_path


def test_records_of_equal_content_are_left_out_whatever_else_differs(folder):
    records = [
        pair("q", {"images": ["a.png"]}, key="first"),
        pair("q", {"images": ["copy.png"]}, key="same", target_id="named", negatives=[{"text": "n"}]),
        pair("q", {"images": ["b.png"]}, key="other-target"),
        pair("r", {"images": ["a.png"]}, key="other-query"),
        pair("q", {"text": "t", "images": ["a.png"]}, key="with-text"),
        {"target": {"images": ["a.png"]}, "key": "no-query"},
        {"target": {"images": ["copy.png"]}, "key": "no-query-again"},
    ]
    path = write_records(folder, records)
    summary = build_shards(path, folder, folder / "out", 2, deduplicate=True)
    assert keys(folder / "out") == ["first", "other-target", "other-query", "with-text", "no-query"]
    assert summary.rejected == {"duplicate": 2}
    assert [(line["number"], line["reason"]) for line in lines(folder / "out" / "quarantine.jsonl")] == [
        (2, "its query and target are those of record number 1"),
        (7, "its query and target are those of record number 6"),
    ]
    assert build_shards(path, folder, folder / "all", 2).samples == 7


def test_duplicates_are_not_bad_records(folder):
    summary = build_shards(
        write_records(folder, [pair("q", "t")] * 50), folder, folder / "out", deduplicate=True, max_bad_share=0
    )
    assert (summary.samples, summary.rejected) == (1, {"duplicate": 49})


def test_a_whole_record_that_is_there_twice_is_a_duplicate_whose_key_is_no_mistake(folder):
    records = [pair("q", "t", key="a"), pair("q", "t", key="a"), pair("r", "t", key="a")]
    summary = build_shards(write_records(folder, records), folder, folder / "out", deduplicate=True)
    assert summary.rejected == {"duplicate": 1, "repeated key": 1}


def evaluation(folder: Path, records: list[dict], **settings) -> Path:
    (folder / "evaluation").mkdir()
    build_shards(write_records(folder / "evaluation", records), folder, folder / "evaluation" / "shards", **settings)
    return folder / "evaluation" / "shards"


TRAINING = [
    pair("fresh", "fresh", key="clean"),
    pair("seen", "fresh", key="query"),
    pair("fresh 2", "label", key="target"),
    pair({"text": "anew", "images": ["copy.png"]}, "fresh 3", key="picture"),
    pair("fresh 4", "fresh 4", key="negative", negatives=[{"images": ["a.png"]}]),
    pair("seen", "label", key="both"),
]


def test_what_an_evaluation_set_holds_too_is_reported_and_kept(folder):
    shards = evaluation(folder, [pair("seen", "label", key="e1"), pair({"images": ["a.png"]}, "else", key="e2")])
    settings = BuildSettings(evaluation=(shards,))
    summary = build(JsonlSource(write_records(folder, TRAINING)), folder, folder / "out", settings)
    assert keys(folder / "out") == ["clean", "query", "target", "picture", "negative", "both"]
    assert summary.leaks == {"records": 5, "query": 2, "target": 2, "image": 2}
    found = {line["key"]: line for line in lines(folder / "out" / "leakage.jsonl")}
    assert {key: [(share["shares"], share["key"]) for share in line["shared"]] for key, line in found.items()} == {
        "query": [("query", "e1")],
        "target": [("target", "e1")],
        "picture": [("image", "e2")],
        "negative": [("image", "e2")],
        "both": [("query", "e1"), ("target", "e1")],
    }
    assert found["both"]["shared"][0]["evaluation"] == str(shards) and not found["both"]["left_out"]


def test_leaked_records_are_left_out_on_demand_by_what_is_compared(folder):
    shards = evaluation(folder, [pair("seen", "label", key="e1"), pair({"images": ["a.png"]}, "else", key="e2")])
    source = JsonlSource(write_records(folder, TRAINING))
    summary = build(
        source, folder, folder / "all", BuildSettings(evaluation=(shards,), drop_leaked=True, max_bad_share=0)
    )
    assert keys(folder / "all") == ["clean"]
    assert summary.rejected == {"leaked": 5}
    reasons = [line["reason"] for line in lines(folder / "all" / "quarantine.jsonl")]
    assert reasons[0] == f"its query is in the sample 'e1' of the evaluation set {shards}"
    build(source, folder, folder / "some", BuildSettings(evaluation=(shards,), drop_leaked=True, leaks=("query",)))
    assert keys(folder / "some") == ["clean", "target", "picture", "negative"]


def test_pictures_are_found_whichever_side_was_encoded_anew(folder):
    shrink = Encoding(resize=6, format="jpeg")
    records = [pair({"images": ["a.png"]}, "train"), pair("q", "t")]
    for name, of_evaluation, of_training in (("stored", shrink, shrink), ("given", Encoding(), shrink)):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(picture(0))
        shards = evaluation(folder / name, [pair({"images": ["a.png"]}, "test")], encoding=of_evaluation)
        settings = BuildSettings(evaluation=(shards,), encoding=of_training)
        summary = build(
            JsonlSource(write_records(folder / name, records)), folder / name, folder / name / "out", settings
        )
        assert summary.leaks == {"records": 1, "query": 1, "image": 1}, name


def test_another_evaluation_set_is_another_build(folder):
    shards = evaluation(folder, [pair("seen", "label")])
    source = JsonlSource(write_records(folder, TRAINING))
    build(source, folder, folder / "out", BuildSettings(evaluation=(shards,)))
    with pytest.raises(UserError, match="evaluation is"):
        build(source, folder, folder / "out", BuildSettings())


def test_a_damaged_evaluation_set_is_named(folder):
    shards = evaluation(folder, [pair("seen", "label")])
    tar = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(bytes(512) + tar[512:])
    with pytest.raises(
        UserError,
        match=r"evaluation/shards cannot be compared with: In shard 00000.tar, sample number 0 cannot be used",
    ):
        build(JsonlSource(write_records(folder, TRAINING)), folder, folder / "out", BuildSettings(evaluation=(shards,)))
