import json
import shutil
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import make_shards, samples_in, write_records

from data_tools.build.builder import build_shards
from data_tools.inspect.check import check_shards
from data_tools.inspect.describe import describe_shards
from data_tools.rearrange.split import Share, SplitSettings, split_shards
from pdfx.data import ShardedDataset
from pdfx.errors import UserError


def parts_in(folder, *shares: str) -> tuple[Share, ...]:
    return tuple(Share(folder / f"part-{i}", Fraction(share)) for i, share in enumerate(shares))


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "target": st.fixed_dictionaries({"text": st.sampled_from("abcdefgh")}),
            # A text of blanks alone is quarantined.
            "query": st.fixed_dictionaries({"text": st.text(max_size=5).map("q".__add__)}),
        },
        optional={"target_id": st.sampled_from(["one", "two", "three"]), "negatives": st.just([{"text": "n"}])},
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=20)
@given(
    RECORDS,
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from(["target", "key"]),
    st.integers(1, 8),
)
def test_parts_are_disjoint_and_together_everything_in_order(
    tmp_path_factory, records, weights, seed, by, samples_per_shard
):
    folder = tmp_path_factory.mktemp("split")
    build_shards(write_records(folder, records), folder, folder / "all", 7)
    parts = parts_in(folder, *(str(Fraction(weight, sum(weights))) for weight in weights))
    try:
        written = split_shards(folder / "all", SplitSettings(parts, seed, by, samples_per_shard))
    except UserError as error:
        # Few samples may well leave a part without one; then nothing may be there.
        assert "falls to" in str(error)
        assert not any(part.path.exists() for part in parts)
        return
    everything = samples_in(folder / "all")
    of_parts = [samples_in(part.path) for part in parts]
    assert Counter(key for part in of_parts for key, *_ in part) == Counter(key for key, *_ in everything)
    for part in of_parts:
        keys = {key for key, *_ in part}
        assert part == [sample for sample in everything if sample[0] in keys]
    targets = [{json.loads(record)["target_id"] for _, record, _ in part} for part in of_parts]
    if by == "target":
        assert sum(map(len, targets)) == len(set().union(*targets))
    assert [(part.written.samples, part.targets) for part in written] == [
        (len(part), len(ids)) for part, ids in zip(of_parts, targets, strict=True)
    ]
    assert all(check_shards(part.path, full=True) == [] for part in parts)


def test_a_split_writes_what_a_build_would(tmp_path):
    shards = make_shards(tmp_path)
    split_shards(shards, SplitSettings(parts_in(tmp_path, "1"), samples_per_shard=10))
    written, built = files_of(tmp_path / "part-0"), files_of(shards)
    assert set(written) == {name for name in built if name != "build.jsonl"}
    assert written == {name: built[name] for name in written}


def test_a_repeated_split_gives_the_same_bytes_and_another_seed_other_parts(tmp_path):
    shards = make_shards(tmp_path)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        split_shards(shards, SplitSettings(parts_in(tmp_path / name, "0.6", "0.4"), seed))
    first, again, other = (
        [files_of(tmp_path / name / part) for part in ("part-0", "part-1")] for name in ("one", "two", "three")
    )
    assert first == again
    assert first != other


def test_parts_have_about_their_shares(tmp_path):
    build_shards(
        write_records(tmp_path, [{"query": {"text": f"q{i}"}, "target": {"text": f"t{i}"}} for i in range(2000)]),
        tmp_path,
        tmp_path / "all",
    )
    train, test = split_shards(tmp_path / "all", SplitSettings(parts_in(tmp_path, "0.9", "0.1")))
    assert train.written.samples + test.written.samples == 2000
    # Of independent draws: 200 with a standard deviation of 13.4; five of these.
    assert abs(test.written.samples - 200) < 67


def test_samples_without_a_query_follow_their_targets_and_are_counted(tmp_path):
    records = [{"query": {"text": f"q{i}"}, "target": {"text": f"t{i % 20}"}} for i in range(40)] + [
        {"target": {"text": f"t{i}"}} for i in range(30)
    ]
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "all")
    split_shards(tmp_path / "all", SplitSettings(parts_in(tmp_path, "1/2", "1/2")))
    assert sum(ShardedDataset(tmp_path / f"part-{i}").index.targets_only for i in range(2)) == 30
    assert sum(describe_shards(tmp_path / f"part-{i}")["targets"] for i in range(2)) == 30


@pytest.mark.parametrize("existed", [False, True])
def test_a_damaged_sample_is_named_and_nothing_is_left_behind(tmp_path, existed):
    shards = make_shards(tmp_path)
    tar = shards / "00002.tar"
    data = tar.read_bytes()
    place = data.find(b"sample-021.json")
    tar.write_bytes(data[:place] + bytes(512) + data[place + 512 :])
    parts = parts_in(tmp_path / "new" / "deep", "0.5", "0.5")
    if existed:
        parts[0].path.mkdir(parents=True)
    with pytest.raises(UserError, match="shards cannot be split. In shard 00002.tar, sample number 1 cannot be used"):
        split_shards(shards, SplitSettings(parts))
    assert (tmp_path / "new").exists() == existed
    assert not existed or [path.name for path in (tmp_path / "new").rglob("*")] == ["deep", "part-0"]


def test_an_interrupted_split_leaves_nothing_behind(tmp_path):
    def interrupt(done: int, _: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    parts = parts_in(tmp_path / "new", "0.5", "0.5")
    with pytest.raises(KeyboardInterrupt):
        split_shards(make_shards(tmp_path), SplitSettings(parts, samples_per_shard=3), interrupt)
    assert not (tmp_path / "new").exists()


def test_a_part_without_a_sample_is_refused(tmp_path):
    shards = make_shards(tmp_path, samples=3)
    with pytest.raises(
        UserError, match=r"No sample of the 3 .* falls to .*part-1; give it a larger share, or another seed"
    ):
        split_shards(shards, SplitSettings(parts_in(tmp_path, "0.999999", "0.000001")))
    assert not (tmp_path / "part-0").exists()


def test_samples_with_candidates_are_refused(tmp_path):
    records = [
        {"key": "a", "query": {"text": "q"}, "target": {"text": "t"}, "target_id": "t", "candidates": ["t", "u"]}
    ]
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "all")
    with pytest.raises(UserError, match="the sample 'a' names candidates"):
        split_shards(tmp_path / "all", SplitSettings(parts_in(tmp_path, "1")))


def test_directories_that_hold_something_or_one_another_are_refused(tmp_path):
    shards = make_shards(tmp_path, samples=3)
    shutil.copytree(shards, tmp_path / "part-1")
    with pytest.raises(UserError, match="part-1 is not an empty directory"):
        split_shards(shards, SplitSettings(parts_in(tmp_path, "0.5", "0.5")))
    assert not (tmp_path / "part-0").exists() and files_of(tmp_path / "part-1") == files_of(shards)
    for other in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "b" / ".." / "a"):
        with pytest.raises(UserError, match="are the same directory, or one lies in the other"):
            split_shards(shards, SplitSettings((Share(tmp_path / "a", Fraction(1, 2)), Share(other, Fraction(1, 2)))))


@pytest.mark.parametrize(
    "text",
    [
        "shards/train",
        "=0.5",
        "shards/train=",
        "shards/train=many",
        "shards/train=0",
        "shards/train=-0.5",
        "shards/train=1/0",
    ],
)
def test_a_part_is_a_path_and_a_share_above_nothing(text):
    with pytest.raises(UserError, match="names no part; write a directory and its share, like shards/train=0.9"):
        Share.parse(text)


def test_shares_are_exact(tmp_path):
    assert [Share.parse(f"a=b={text}").share for text in ("0.1", "1/3", ".25")] == [
        Fraction(1, 10),
        Fraction(1, 3),
        Fraction(1, 4),
    ]
    SplitSettings(tuple(Share.parse(f"p{i}=0.1") for i in range(10)))
    with pytest.raises(UserError, match="sum to 0.99 and must sum to 1"):
        SplitSettings(tuple(Share.parse(f"p{i}=0.33") for i in range(3)))
