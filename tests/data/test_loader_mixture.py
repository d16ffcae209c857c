"""Loading from several data sets: the same sequence for all ranks, workers and stops, and coverage that adds up."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import ByteProcessor, damage_image, make_shards

from data_tools.build.builder import build_shards
from pdfx.config import ConfigError, DataSection, parse_config
from pdfx.data import TrainLoader
from pdfx.errors import UserError

SIZES = {"letters": 23, "numbers": 9, "names": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[dict]:
    """Three data sets of texts, in shards of 7, 7 and 40 samples: fewer shards than ranks, and one that holds
    everything."""
    folder = tmp_path_factory.mktemp("sets")
    sets = []
    for name, size in SIZES.items():
        records = folder / f"{name}.jsonl"
        lines = [
            {"key": f"{name}-{i:03d}", "query": {"text": f"{name} {i}"}, "target": {"text": f"answer {i}"}}
            for i in range(size)
        ]
        records.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        build_shards(records, folder, folder / name, samples_per_shard=40 if name == "names" else 7)
        sets.append({"path": str(folder / name)})
    return sets


def loader(folders, rank=0, world_size=1, batch_pairs=4, chunks=1, state=None, **options) -> TrainLoader:
    values = {"num_workers": 0, "span_samples": 3, "window_spans": 4, "sub_batch_pairs": 4, **options}
    return TrainLoader(
        DataSection(train=folders, **values), ByteProcessor(), rank, world_size, batch_pairs, chunks, 11, state
    )


def read(folders, steps, world_size=1, **options) -> list[str]:
    ranks = [
        [batch.keys for batch in islice(loader(folders, rank, world_size, **options), steps)]
        for rank in range(world_size)
    ]
    return [key for step in zip(*ranks, strict=True) for keys in step for key in keys]


@pytest.fixture(scope="module")
def expected(folders) -> list[str]:
    return read(folders, 150, batch_pairs=4)


@pytest.mark.process
@given(
    st.integers(1, 16),
    st.integers(1, 3),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    st.integers(0, 4),
    st.integers(1, 16),
    st.integers(1, 3),
)
@settings(max_examples=12)
def test_any_ranks_and_workers_read_the_same_sequence_and_go_on_with_it_after_a_stop(
    folders, expected, world, pairs, workers, steps, other_world, other_pairs
):
    begun = [loader(folders, rank, world, pairs, num_workers=workers if rank == 0 else 0) for rank in range(world)]
    first = [key for _ in range(steps) for rank in begun for key in next(rank).keys]
    states = [json.loads(json.dumps(rank.state_dict())) for rank in begun]
    assert all(state == states[0] for state in states)
    rest = read(folders, 2, other_world, batch_pairs=other_pairs, state=states[0])
    assert first + rest == expected[: len(first) + len(rest)]


def test_an_epoch_holds_every_sample_of_every_data_set_once(folders, expected):
    # Whole sub-batches only, so a data set may owe the rest of one to the next epoch.
    whole = {name: size // 4 * 4 for name, size in SIZES.items()}
    counts = Counter(expected[: sum(whole.values())])
    assert set(counts.values()) == {1}
    assert Counter(key.split("-")[0] for key in counts) == whole


def test_sub_batches_of_another_size_lose_and_repeat_nothing(folders):
    begun = loader(folders, batch_pairs=6)
    first = [key for batch in islice(begun, 5) for key in batch.keys]
    state = json.loads(json.dumps(begun.state_dict()))
    other = loader(folders, batch_pairs=6, state=state, sub_batch_pairs=7)
    keys = first + [key for batch in islice(other, 60) for key in batch.keys]
    for name, size in SIZES.items():
        own = [key for key in keys if key.startswith(name)]
        assert len(own) > 2 * size
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size
    assert other.coverage_report()["names"]["seen"] == sum(key.startswith("names") for key in keys)


def test_weights_set_the_shares_and_small_data_sets_repeat(folders):
    weighted = [{**data_set, "weight": weight} for data_set, weight in zip(folders, (1, 1, 2), strict=True)]
    train = loader(weighted)
    assert train.epoch_samples == 72
    keys = [key for batch in islice(train, 72) for key in batch.keys]
    counts = Counter(key.split("-")[0] for key in keys)
    assert counts == {"letters": 72, "numbers": 72, "names": 144}
    report = train.coverage_report()
    assert report["numbers"] == {
        "samples": 9,
        "seen": 72,
        "unique": 9,
        "repeated": 63,
        "used": 72,
        "unusable": {},
        "not_yet_seen": 0,
    }
    assert report["names"]["repeated"] == 104


def test_max_samples_takes_other_samples_in_each_epoch(folders):
    capped = [{**data_set, "max_samples": 8} if "names" in data_set["path"] else data_set for data_set in folders]
    train = loader(capped)
    assert train.epoch_samples == 23 + 9 + 8
    names = [key for batch in islice(train, 50) for key in batch.keys if key.startswith("names")]
    assert len(names) == len(set(names)) == 40


def test_coverage_adds_up_to_the_last_sample_and_says_what_was_wrong(tmp_path, folders):
    damaged = make_shards(tmp_path)
    for sample in (3, 17):
        damage_image(damaged, sample)
    train = loader([{"path": str(damaged), "name": "damaged"}, folders[0]], batch_pairs=7, sub_batch_pairs=5)
    used = Counter()
    for batch in islice(train, 14):
        train.coverage.add(train.coverage.count(batch.problems))
        used.update(
            "damaged" if key.startswith("sample") else "letters"
            for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True)
            if valid
        )
    report = train.coverage_report()
    assert sum(counts["seen"] for counts in report.values()) == train.samples == 98
    for name, counts in report.items():
        assert counts["used"] == used[name]
        assert (
            counts["seen"] == counts["used"] + sum(counts["unusable"].values()) == counts["unique"] + counts["repeated"]
        )
        assert counts["samples"] == counts["unique"] + counts["not_yet_seen"]
    assert report["damaged"]["unusable"] == {"picture": 2 * report["damaged"]["seen"] // 25}
    resumed = loader(
        [{"path": str(damaged), "name": "damaged"}, folders[0]], sub_batch_pairs=5, state=train.state_dict()
    )
    assert resumed.coverage_report() == report


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda sets: sets[:2],
            "lists the data sets letters, numbers and the checkpoint was made with letters, numbers, names",
        ),
        (
            lambda sets: [{**data_set, "max_samples": 5} for data_set in sets],
            "An epoch would take 5 samples of letters and took 23 before",
        ),
    ],
)
def test_a_mixture_that_would_change_the_order_is_refused_on_resume(folders, change, sentence):
    state = loader(folders).state_dict()
    with pytest.raises(UserError, match=sentence):
        loader(change(folders), state=state)


def test_shards_that_hold_targets_without_queries_are_not_trained_on(tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text(
        '{"query": {"text": "a"}, "target": {"text": "b"}}\n{"target": {"text": "c"}}\n', encoding="utf-8"
    )
    build_shards(records, tmp_path, tmp_path / "shards")
    with pytest.raises(
        UserError, match="Of the 2 samples in .*shards, 1 have no query, so these shards are for evaluation"
    ):
        loader(str(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"train": ["a/x", "b/x"]}, "two data sets of train are called 'x'"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "some data sets of train have a weight and some have none"),
        (
            {"train": [{"path": "a", "weight": 1}], "mixture_temperature": 2},
            "mixture_temperature has no effect beside weights",
        ),
        ({"train": [{"path": "a", "wight": 1}]}, "wight"),
        ({"train": []}, "train"),
    ],
)
def test_a_mistaken_mixture_is_one_sentence(data, sentence):
    train = {"output_dir": "run", "deepspeed": "ds.json", "max_steps": 1, "per_device_train_batch_size": 1}
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_config({"model": {"path": "model"}, "data": data, "train": train})
    assert "\n" not in str(caught.value)


def test_a_single_folder_is_a_data_set_of_its_own_name():
    (only,) = DataSection(train=str(Path("shards") / "train")).training_sets()
    assert (only.name, only.path) == ("train", "shards/train")
