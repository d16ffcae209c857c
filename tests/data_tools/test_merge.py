import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import damage_image, make_shards, samples_in, write_records

from data_tools.build.builder import build_shards
from data_tools.inspect.check import check_shards
from data_tools.rearrange.merge import merge_shards
from data_tools.rearrange.split import Share, SplitSettings, split_shards
from pdfx.data import ShardedDataset
from pdfx.errors import UserError


def text_shards(folder, keys: list[str], queries: bool = True, samples_per_shard: int = 2):
    folder.mkdir()
    records = [
        {"key": key, "target": {"text": f"target of {key}"}} | ({"query": {"text": key}} if queries else {})
        for key in keys
    ]
    build_shards(write_records(folder, records), folder, folder / "shards", samples_per_shard)
    return folder / "shards"


@pytest.fixture
def two(tmp_path):
    """Two directories of shards, one of them for evaluation alone."""
    return [text_shards(tmp_path / "a", ["k1", "k2", "k3"]), text_shards(tmp_path / "b", ["k4", "k5"], queries=False)]


@pytest.mark.parametrize("link", [False, True])
def test_merged_shards_hold_all_samples_in_the_order_given(two, tmp_path, link):
    calls, key_calls = [], []
    written = merge_shards(
        two,
        tmp_path / "all",
        link,
        key_progress=lambda *counts: key_calls.append(counts),
        progress=lambda *counts: calls.append(counts),
    )
    index = ShardedDataset(tmp_path / "all").index
    assert [entry.name for entry in index.shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert (index.samples, index.targets_only, written.samples, written.shards, written.fingerprint) == (
        5,
        2,
        5,
        3,
        index.fingerprint,
    )
    assert samples_in(tmp_path / "all") == samples_in(two[0]) + samples_in(two[1])
    assert check_shards(tmp_path / "all", full=True) == []
    assert (calls, key_calls) == ([(2, 5), (3, 5), (5, 5)], [(done, 5) for done in range(1, 6)])
    assert (tmp_path / "all" / "00002.tar").samefile(two[1] / "00000.tar") == link


def test_shards_behind_a_url_are_split_and_merged_like_local_ones(two, tmp_path):
    split_shards(two[0].as_uri(), SplitSettings((Share.parse(f"{tmp_path / 'part'}=1"),), samples_per_shard=2))
    written = merge_shards([(tmp_path / "part").as_uri(), two[1].as_uri()], tmp_path / "all")
    assert written.fingerprint == merge_shards(two, tmp_path / "local").fingerprint
    with pytest.raises(UserError, match="behind a URL cannot be linked"):
        merge_shards([two[0].as_uri()], tmp_path / "linked", link=True)


@settings(max_examples=8)
@given(st.integers(3, 25), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_merging_the_parts_of_a_split_gives_the_same_set_of_samples(tmp_path_factory, samples, parts, seed, prefix):
    folder = tmp_path_factory.mktemp("merge")
    shards = text_shards(folder / "a", [f"key-{i}" for i in range(samples)], samples_per_shard=4)
    shares = tuple(Share.parse(f"{folder}/part-{i}=1/{parts}") for i in range(parts))
    try:
        split_shards(shards, SplitSettings(shares, seed, samples_per_shard=3))
    except UserError:
        # A part would be empty.
        return
    merge_shards([share.path for share in shares], folder / "all", prefix_keys=prefix)
    assert check_shards(folder / "all", full=True) == []
    found = samples_in(folder / "all")
    if prefix:
        assert sorted(key.partition("-")[2] for key, *_ in found) == sorted(key for key, *_ in samples_in(shards))
    else:
        assert sorted(found, key=str) == sorted(samples_in(shards), key=str)


def test_repeated_keys_are_refused_by_name_and_prefixes_tell_them_apart(tmp_path):
    inputs = [
        text_shards(tmp_path / "a", ["k1", "k2", "k3", "k4", "k5"]),
        text_shards(tmp_path / "b", ["k5", "k4", "k3", "k2", "k6"]),
    ]
    with pytest.raises(
        UserError, match=r"'k5' in .*a/shards and .*b/shards, 'k4' in .*, 'k3' in .*and 1 more\. Give --prefix-keys"
    ):
        merge_shards(inputs, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    merge_shards(inputs, tmp_path / "all", prefix_keys=True)
    keys = [key for key, *_ in samples_in(tmp_path / "all")]
    assert keys == ["0-k1", "0-k2", "0-k3", "0-k4", "0-k5", "1-k5", "1-k4", "1-k3", "1-k2", "1-k6"]
    assert [json.loads(record)["key"] for _, record, _ in samples_in(tmp_path / "all")] == keys
    assert [entry.samples for entry in ShardedDataset(tmp_path / "all").index.shards] == [2, 2, 1, 2, 2, 1]
    assert check_shards(tmp_path / "all", full=True) == []


def test_pictures_keep_their_bytes_under_prefixed_keys(tmp_path):
    shards = make_shards(tmp_path, samples=4)
    merge_shards([shards], tmp_path / "all", prefix_keys=True)
    assert [members["target.0.png"] for *_, members in samples_in(tmp_path / "all")] == [
        members["target.0.png"] for *_, members in samples_in(shards)
    ]


def test_a_key_that_would_grow_too_long_is_named(tmp_path):
    shards = text_shards(tmp_path / "a", ["x" * 63])
    with pytest.raises(UserError, match="The key '0-x+' would have more than 64 characters"):
        merge_shards([shards], tmp_path / "all", prefix_keys=True)
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("existed", [False, True])
def test_a_copy_with_another_checksum_is_refused_and_nothing_is_left_behind(two, tmp_path, existed):
    shards = make_shards(tmp_path / "c")
    damage_image(shards, 24)
    if existed:
        (tmp_path / "all").mkdir()
    with pytest.raises(UserError, match="00002.tar has another SHA-256 than its index.json says"):
        merge_shards([*two, shards], tmp_path / "all")
    assert (tmp_path / "all").exists() == existed
    assert not existed or list((tmp_path / "all").iterdir()) == []


@pytest.mark.parametrize("prefix", [False, True])
def test_a_damaged_record_is_named(tmp_path, prefix):
    shards = make_shards(tmp_path)
    data = (shards / "00001.tar").read_bytes()
    place = data.find(b"sample-012.json")
    (shards / "00001.tar").write_bytes(data[:place] + bytes(512) + data[place + 512 :])
    with pytest.raises(UserError, match="shards cannot be merged. In shard 00001.tar, sample number 2 cannot be used"):
        merge_shards([shards], tmp_path / "all", prefix_keys=prefix)
    assert not (tmp_path / "all").exists()


def test_missing_statistics_are_told(two, tmp_path):
    (two[1] / "00000_stats.json").unlink()
    with pytest.raises(UserError, match="00000_stats.json are missing"):
        merge_shards(two, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(two, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "precious").write_text("x")
    with pytest.raises(UserError, match="all is not an empty directory"):
        merge_shards(two, tmp_path / "all")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["precious"]


def test_links_and_new_keys_exclude_one_another(two, tmp_path):
    with pytest.raises(UserError, match="choose one of --link and --prefix-keys"):
        merge_shards(two, tmp_path / "all", link=True, prefix_keys=True)
