import hashlib
import json
import os
import sys
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from tiny_shards import make_shards, picture, write_records

from data_tools.build.builder import build as build_from
from data_tools.build.builder import build_shards
from data_tools.build.settings import Encoding
from data_tools.inspect.check import check_shards
from data_tools.sources.registry import open_source
from pdfx.data import ShardedDataset
from pdfx.data.schema import identity_number
from pdfx.errors import UserError

PAIR = {"query": {"text": "q"}, "target": {"text": "t"}}


def build(folder, records, **options):
    (folder / "images").mkdir(exist_ok=True)
    return build_shards(write_records(folder, records), folder / "images", folder / "shards", **options)


def content(folder) -> dict[str, bytes]:
    """All files but the journal, which names the image folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "build.jsonl"}


def test_a_rebuild_gives_the_same_bytes(tmp_path):
    first, second = (make_shards(tmp_path / name) for name in ("one", "two"))
    for image in (tmp_path / "two" / "images").iterdir():
        os.utime(image, (1, 1))
    assert content(first) == content(second)
    assert len(content(first)) == 3 * 3 + 1


def test_the_index_counts_and_sums_what_is_there(tmp_path):
    shards = make_shards(tmp_path)
    index = json.loads((shards / "index.json").read_text())
    assert [(entry["name"], entry["samples"]) for entry in index["shards"]] == [
        ("00000.tar", 10),
        ("00001.tar", 10),
        ("00002.tar", 5),
    ]
    assert index["samples"] == 25
    for entry in index["shards"]:
        data = (shards / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    listed = "".join(f"{entry['name']} {entry['samples']} {entry['sha256']}\n" for entry in index["shards"])
    assert index["fingerprint"] == hashlib.sha256(listed.encode()).hexdigest()


def test_shards_are_plain_webdataset_tars_with_images_as_given(tmp_path):
    shards = make_shards(tmp_path, samples=6, samples_per_shard=6)
    samples = list(webdataset.WebDataset(str(shards / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"sample-{i:03d}" for i in range(6)]
    for i, sample in enumerate(samples):
        assert sample["target.0.png"] == picture(i)
        assert json.loads(sample["json"])["target"] == {"text": f"target {i}", "images": ["target.0.png"]}


def test_offsets_cut_a_tar_into_its_samples(tmp_path):
    shards = make_shards(tmp_path)
    data, offsets = (shards / "00001.tar").read_bytes(), np.load(shards / "00001.idx.npy")
    assert (offsets.dtype, offsets.shape, offsets[0]) == (np.int64, (11,), 0)
    for i, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True), start=10):
        assert picture(i) in data[start:stop]
        assert data[start:stop].startswith(f"sample-{i:03d}.json".encode())


def test_targets_are_identified_by_name_or_else_by_text_and_images(tmp_path):
    (tmp_path / "images").mkdir()
    for name, seed in (("a.png", 0), ("copy.png", 0), ("b.png", 1)):
        (tmp_path / "images" / name).write_bytes(picture(seed))
    targets = [
        {"text": "t"},
        {"text": "t"},
        {"text": "u"},
        {"images": ["a.png"]},
        {"images": ["copy.png"]},
        {"images": ["b.png"]},
        {"text": "t", "images": ["a.png"]},
    ]
    records = [{"query": {"text": "q"}, "target": target} for target in targets]
    records += [
        PAIR | {"target_id": "named"},
        PAIR | {"target_id": "named", "negatives": [{"text": "t"}, {"text": "t", "target_id": "named"}]},
    ]
    build(tmp_path, records)
    dataset = ShardedDataset(tmp_path / "shards")
    ids = [dataset.read(i).target_id for i in range(9)]
    assert [ids.index(number) for number in ids] == [0, 0, 2, 3, 3, 5, 6, 7, 7]
    assert ids[7] == identity_number("named")
    # A hard negative that another sample has as its target bears that target's identity.
    assert dataset.read(8).negative_ids == [ids[0], ids[7]]


def test_members_bear_the_extension_of_their_content(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "wrong.png", "JPEG")
    build(
        tmp_path,
        [
            {
                "query": {"images": ["wrong.png"]},
                "target": {"text": "t"},
                "negatives": [{"images": ["wrong.png", "wrong.png"]}],
            }
        ],
    )
    _, record = next(iter(ShardedDataset(tmp_path / "shards").records()))
    assert record.query.images == ["query.0.jpg"]
    assert record.negatives[0].images == ["negatives.0.0.jpg", "negatives.0.1.jpg"]
    assert check_shards(tmp_path / "shards", full=True) == []


def test_records_without_a_key_get_their_number_and_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n\n{{}}\n{json.dumps(PAIR)}")
    summary = build_shards(path, tmp_path, tmp_path / "shards")
    assert (summary.samples, summary.shards) == (2, 1)
    dataset = ShardedDataset(tmp_path / "shards")
    assert [dataset.read(i).key for i in range(2)] == ["000000001", "000000003"]


def test_any_script_survives_the_way_through_a_shard(tmp_path):
    text = 'Größe 猫 🦜 \n\t"quoted" \\ \u2028 e\u0301'
    build(tmp_path, [{"query": {"text": text}, "target": {"text": "t"}}])
    assert ShardedDataset(tmp_path / "shards").read(0).query["text"] == text


def test_progress_runs_from_nothing_to_everything(tmp_path):
    calls = []
    build(tmp_path, [PAIR] * 3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "precious").write_text("x")
    with pytest.raises(UserError, match="shards is not an empty directory"):
        build(tmp_path, [PAIR])
    assert content(tmp_path / "shards") == {"precious": b"x"}


@pytest.mark.parametrize("existed", [False, True])
def test_no_records_are_refused_and_leave_the_directory_as_it_was(tmp_path, existed):
    if existed:
        (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="no records in records.jsonl"):
        build(tmp_path, [])
    assert (tmp_path / "shards").exists() == existed
    assert not existed or content(tmp_path / "shards") == {}


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"samples_per_shard": 0}, "samples_per_shard is 0 and must be 1 or more"),
        ({"shard_bytes": 0}, "shard_bytes is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"max_bad_share": 1.5}, "max_bad_share is 1.5 and must be from 0 to 1"),
        ({"leaks": ("key",)}, "'key' cannot be compared"),
        ({"drop_leaked": True}, "if evaluation shards are given"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, setting, sentence):
    with pytest.raises(UserError, match=sentence):
        build(tmp_path, [PAIR], **setting)
    assert not (tmp_path / "shards").exists()


def test_a_shard_ends_by_samples_or_by_bytes_whichever_comes_first(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "large.png").write_bytes(picture(0, 100, 100))
    small = {"query": {"text": "q"}, "target": {"text": "t"}}
    large = {"query": {"text": "q"}, "target": {"images": ["large.png"]}}
    build(tmp_path, [small] * 8 + [large, large] + [small] * 2, samples_per_shard=3, shard_bytes=4096)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    # A small sample has 1,024 bytes; a large one more than a shard should, and has one of its own.
    assert [entry["samples"] for entry in index["shards"]] == [3, 3, 2, 1, 1, 2]
    assert check_shards(tmp_path / "shards", full=True) == []


def test_the_tars_are_those_of_webdatasets_own_writer(tmp_path):
    shards = make_shards(tmp_path, samples=6, samples_per_shard=6)
    with (tmp_path / "theirs.tar").open("wb") as stream:
        with webdataset.TarWriter(stream, encoder=False, user="", group="", mode=0o644, mtime=0) as writer:
            for sample in webdataset.WebDataset(str(shards / "00000.tar"), shardshuffle=False):
                writer.write(
                    {name: data for name, data in sample.items() if name == "__key__" or not name.startswith("_")}
                )
    assert (shards / "00000.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_the_stats_of_the_shards_add_up_to_what_they_hold(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(0, 30, 20))
    (tmp_path / "images" / "b.png").write_bytes(picture(1, 10, 10))
    records = [
        {
            "query": {"text": "four"},
            "target": {"images": ["a.png", "b.png"]},
            "negatives": [{"text": "n", "images": ["b.png"]}, {"text": "nn"}],
        },
        {"target": {"text": "target"}},
        {"query": {"images": ["b.png"]}, "target": {"text": "t"}},
    ]
    build(tmp_path, records, samples_per_shard=2, encoding=Encoding(resize=15))
    stats = [json.loads((tmp_path / "shards" / f"0000{i}_stats.json").read_text()) for i in range(2)]
    for entry, of_shard in zip(
        json.loads((tmp_path / "shards" / "index.json").read_text())["shards"], stats, strict=True
    ):
        assert (of_shard["samples"], of_shard["bytes"]) == (entry["samples"], entry["bytes"])
    total = {name: stats[0][name] + stats[1][name] for name in stats[0]}
    shrunk = len(ShardedDataset(tmp_path / "shards").shards[0].raw(0)[2]["target.0.png"])
    small = len(picture(1, 10, 10))
    expected = {"samples": 3, "targets_only": 1, "images_reencoded": 1}
    expected |= {
        "query_items": 2,
        "query_texts": 1,
        "query_characters": 4,
        "query_images": 1,
        "query_image_bytes": small,
        "query_pixels": 100,
    }
    expected |= {
        "target_items": 3,
        "target_texts": 2,
        "target_characters": 7,
        "target_images": 2,
        "target_image_bytes": shrunk + small,
    }
    expected |= {
        "target_pixels": 15 * 10 + 100,
        "negatives_items": 2,
        "negatives_texts": 2,
        "negatives_characters": 3,
        "negatives_images": 1,
    }
    expected |= {"negatives_image_bytes": small, "negatives_pixels": 100}
    assert {name: total[name] for name in expected} == expected
    assert total.keys() == {*expected, "bytes"}


def test_samples_without_a_query_are_counted_in_the_index(tmp_path):
    build(tmp_path, [PAIR, {"target": {"text": "t"}}, {"target": {"text": "u"}}, PAIR], samples_per_shard=2)
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["targets_only"] == 2


def test_nothing_of_the_builder_enters_a_shard(tmp_path):
    shards = make_shards(tmp_path, samples=2)
    with tarfile.open(shards / "00000.tar") as archive:
        assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in archive} == {
            (0, 0, "", "", 0)
        }


@pytest.fixture
def opened():
    """The files that this process has opened to read since the fixture was asked for."""
    paths, listening = [], True

    def note(event: str, arguments: tuple) -> None:
        if listening and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            paths.append(os.fspath(arguments[0]))

    # Hooks cannot be removed.
    sys.addaudithook(note)
    yield paths
    listening = False


@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_a_build_reads_each_line_once_to_count_it_and_once_to_pack_it(tmp_path, opened, format):
    records = write_records(tmp_path, [{"query": {"text": f"q{i}"}, "target": {"text": f"t{i}"}} for i in range(3000)])
    reads = opened.count(str(records))
    summary = build_from(open_source(format, records), None, tmp_path / "shards")
    assert summary.samples == 3000
    # One opening more, which reads nothing, shows that the file can be read.
    assert opened.count(str(records)) - reads <= (4 if format == "auto" else 3)
