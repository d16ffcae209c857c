import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_shards import damage_image, make_shards, picture

from pdfx.data import SampleError, ShardedDataset
from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint
from pdfx.errors import UserError


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path)


def write_shards(folder, samples: list[list[tuple[tarfile.TarInfo, bytes]]]):
    """A directory of one shard with the given members per sample, as a stranger could make it; its index fits."""
    folder.mkdir()
    stream, offsets = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for members in samples:
            offsets.append(archive.offset)
            for info, data in members:
                archive.addfile(info, io.BytesIO(data))
        offsets.append(archive.offset)
    (folder / "00000.tar").write_bytes(stream.getvalue())
    np.save(folder / "00000.idx.npy", np.array(offsets, dtype=np.int64))
    entry = ShardEntry(name="00000.tar", samples=len(samples), bytes=len(stream.getvalue()), sha256="0" * 64)
    index = ShardIndex(shards=[entry], samples=len(samples), fingerprint=fingerprint([entry]))
    (folder / "index.json").write_text(index.model_dump_json())
    return folder


def member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def record(**changes) -> bytes:
    return json.dumps({"query": {"text": "q"}, "target": {"text": "t"}, "target_id": "t", **changes}).encode()


def test_every_sample_reads_back_as_it_was_built(shards):
    dataset = ShardedDataset(shards)
    assert len(dataset) == 25
    for i in range(25):
        sample = dataset.read(i)
        assert sample.key == f"sample-{i:03d}"
        assert sample.query == {"text": f"query {i}", "images": []}
        assert sample.target["text"] == f"target {i}"
        assert np.array_equal(np.asarray(sample.target["images"][0]), np.asarray(Image.open(io.BytesIO(picture(i)))))
        assert [negative["text"] for negative in sample.negatives] == [f"negative {m} of {i}" for m in range(i % 3)]
        assert len(sample.negative_ids) == i % 3
    assert len({dataset.read(i).target_id for i in range(25)}) == 25
    with pytest.raises(IndexError):
        dataset.read(25)


def test_records_alone_equal_those_of_whole_reads(shards):
    dataset = ShardedDataset(shards)
    assert [key for key, _ in dataset.records()] == [dataset.read(i).key for i in range(25)]


def test_a_record_longer_than_the_first_read_is_read_whole(tmp_path):
    text = "long " * 5000
    dataset = ShardedDataset(write_shards(tmp_path / "s", [[member("a.json", record(query={"text": text}))]]))
    assert next(iter(dataset.records()))[1].query.text == text


def test_empty_shards_are_passed_over(shards):
    index = json.loads((shards / "index.json").read_text())
    empty = {"name": "empty.tar", "samples": 0, "bytes": 0, "sha256": "0" * 64}
    (shards / "empty.tar").write_bytes(b"")
    np.save(shards / "empty.idx.npy", np.zeros(1, dtype=np.int64))
    index["shards"] = [empty, *index["shards"]]
    index["fingerprint"] = fingerprint([ShardEntry(**entry) for entry in index["shards"]])
    (shards / "index.json").write_text(json.dumps(index))
    assert [ShardedDataset(shards).read(i).key for i in (0, 24)] == ["sample-000", "sample-024"]


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda folder: (folder / "index.json").unlink(), "no index.json.*pdfx shards build"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is damaged"),
        (lambda folder: (folder / "00001.tar").unlink(), "00001.tar is missing"),
        (lambda folder: (folder / "00001.idx.npy").unlink(), "00001.idx.npy is missing"),
        (lambda folder: os.truncate(folder / "00001.tar", 5000), "00001.tar is truncated: it has 5000 bytes"),
        (lambda folder: os.truncate(folder / "00001.idx.npy", 40), "00001.idx.npy are truncated"),
        (
            lambda folder: (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes() + bytes(512)),
            "00001.tar is longer",
        ),
    ],
)
def test_an_incomplete_directory_is_refused_when_it_is_opened_and_the_file_is_named(shards, break_it, message):
    break_it(shards)
    with pytest.raises(UserError, match=message):
        ShardedDataset(shards)


def test_a_missing_directory_is_told_as_such(tmp_path):
    with pytest.raises(UserError, match="no directory of shards at .*nowhere"):
        ShardedDataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("samples", 24, "not the sum"),
        ("fingerprint", "0" * 64, "does not fit"),
        ("version", 2, "version 2"),
        ("shards", [], "not the sum"),
        ("extra", 1, "unknown key"),
    ],
)
def test_an_edited_index_is_refused(shards, key, value, message):
    index = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps(index | {key: value}))
    with pytest.raises(UserError, match=message):
        ShardedDataset(shards)


@pytest.mark.parametrize("name", ["../00000.tar", "/tmp/00000.tar", "sub/00000.tar", ".tar", "00000.tgz"])
def test_an_index_cannot_name_files_outside_of_its_directory(shards, name):
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0]["name"] = name
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="shards.0.name"):
        ShardedDataset(shards)


def test_offsets_that_do_not_fit_are_refused(shards):
    offsets = np.load(shards / "00000.idx.npy")
    np.save(shards / "00000.idx.npy", offsets[::-1])
    with pytest.raises(UserError, match="00000.idx.npy do not fit"):
        ShardedDataset(shards).read(0)


def test_offsets_with_pickled_objects_are_refused(shards):
    np.save(shards / "00000.idx.npy", np.array([{"a": 1}] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="00000.idx.npy cannot be read"):
        ShardedDataset(shards).read(0)


def test_a_corrupt_image_names_shard_key_and_image_and_leaves_the_others_readable(shards):
    damage_image(shards, 13)
    dataset = ShardedDataset(shards)
    with pytest.raises(
        SampleError,
        match=r"In shard 00001\.tar, sample 'sample-013' .* the image 'target\.0\.png' cannot be used: .*damaged",
    ) as caught:
        dataset.read(13)
    assert caught.value.key == "sample-013"
    assert dataset.read_item(13, "query")["text"] == "query 13"
    assert [dataset.read(i).key for i in (12, 14)] == ["sample-012", "sample-014"]


def test_a_picture_above_the_pixel_limit_is_a_corrupt_sample(shards):
    with pytest.raises(SampleError, match="12 x 10 pixels, more than the 100 allowed"):
        ShardedDataset(shards, max_image_pixels=100).read(0)


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    """A member of a few bytes that claims a gigabyte of zeros."""
    info = tarfile.TarInfo("a.query.0.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**30), "GNU.sparse.map": "0,4"}
    info.size = 4
    return info, b"data"


def link() -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo("a.query.0.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info, b""


@pytest.mark.parametrize(
    "members, message",
    [
        ([member("a.json", b"{")], "not valid JSON"),
        ([member("a.json", record(querry=1))], "did you mean 'query'"),
        ([member("a.json", record(target_id=None))], "'target_id' is missing"),
        ([member("a.json", record(query={"images": ["query.0.png"]}))], "the image 'query.0.png' is missing"),
        ([member("a.json", record()), member("b.query.0.png", b"x")], "members of one key"),
        ([member("a.query.0.png", b"x")], "'.json' among them"),
        ([member("a.json", record()), link()], "is not a plain file"),
        ([member("a.json", record()), member("a.x", b"1"), member("a.x", b"2")], "there twice"),
    ],
)
def test_an_unsound_sample_is_one_sentence_that_names_the_shard(tmp_path, members, message):
    dataset = ShardedDataset(write_shards(tmp_path / "s", [members, [member("z.json", record())]]))
    with pytest.raises(SampleError, match=message) as caught:
        dataset.read(0)
    assert "00000.tar" in str(caught.value)
    assert dataset.read(1).key == "z"


def test_a_sparse_member_is_refused_before_it_grows(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in [member("a.json", record()), sparse()]:
            archive.addfile(info, io.BytesIO(data))
    folder = write_shards(tmp_path / "s", [[member("a.json", record())]])
    data = stream.getvalue()
    (folder / "00000.tar").write_bytes(data)
    np.save(folder / "00000.idx.npy", np.array([0, len(data)], dtype=np.int64))
    entry = ShardEntry(name="00000.tar", samples=1, bytes=len(data), sha256="0" * 64)
    (folder / "index.json").write_text(
        ShardIndex(shards=[entry], samples=1, fingerprint=fingerprint([entry])).model_dump_json()
    )
    with pytest.raises(SampleError, match="is not a plain file"):
        ShardedDataset(folder).read(0)


def test_member_names_are_never_used_as_paths(tmp_path):
    outside = tmp_path / "outside.json"
    members = [member("../outside.json", record())]
    folder = write_shards(tmp_path / "s", [members])
    with pytest.raises(SampleError):
        ShardedDataset(folder).read(0)
    assert not outside.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_bytes_that_are_no_tar_are_a_corrupt_sample(shards):
    data = bytearray((shards / "00000.tar").read_bytes())
    offsets = np.load(shards / "00000.idx.npy")
    data[offsets[3] : offsets[4]] = b"\xff" * int(offsets[4] - offsets[3])
    (shards / "00000.tar").write_bytes(data)
    dataset = ShardedDataset(shards)
    with pytest.raises(SampleError, match="sample number 3 .* not a sound tar"):
        dataset.read(3)
    assert dataset.read(4).key == "sample-004"


@pytest.mark.process
def test_a_dataset_reads_on_after_a_fork_and_after_pickling(shards):
    dataset = ShardedDataset(shards)
    expected = [dataset.read(i).key for i in range(25)]
    assert [pickle.loads(pickle.dumps(dataset)).read(i).key for i in range(25)] == expected
    child = os.fork()
    if child == 0:
        right = [dataset.read(i).key for i in reversed(range(25))] == expected[::-1]
        os._exit(0 if right else 1)
    assert [dataset.read(i).key for i in range(25)] == expected
    assert os.waitpid(child, 0)[1] == 0


def test_only_a_bounded_number_of_shards_is_open_at_once(tmp_path):
    dataset = ShardedDataset(make_shards(tmp_path, samples=90, samples_per_shard=1))
    for i in range(90):
        dataset.read(i)
    descriptors = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert sum(path.startswith(str(tmp_path)) for path in descriptors) == 64
    assert dataset.read(0).key == "sample-000"
