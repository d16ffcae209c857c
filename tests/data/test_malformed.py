"""Hundreds of malformed pictures and samples: each is read rightly, or skipped with its reason, and nothing is lost
from the counts."""

import re
import sys
from collections import Counter
from functools import cache
from itertools import islice

import numpy as np
import pytest
from malformed.broken_pictures import broken_pictures
from malformed.samples import pack, sound_members
from malformed.shards import damaged_shards
from malformed.sound_pictures import sound_pictures
from PIL import Image
from range_server import RangeServer
from tiny_models import tiny_backbone
from tiny_shards import ByteProcessor

from pdfx.config import DataSection
from pdfx.data import Sample, SampleError, ShardedDataset, TrainLoader
from pdfx.data.batch import collate
from pdfx.data.samples import KINDS, Place, parse_sample
from pdfx.data.storage.base import Reading
from pdfx.model import ParallelEmbedder
from pdfx.model.pictures import ImageError, decode_image


@pytest.fixture(scope="module")
def malformed(tmp_path_factory):
    return damaged_shards(tmp_path_factory.mktemp("data"))


def outcome_of(picture) -> str:
    """Empty where what must come of a picture does come of it."""
    try:
        pixels = np.asarray(decode_image(picture.data)).astype(np.int64)
    except ImageError as error:
        told = re.search(picture.reason, str(error)) if picture.pixels is None else None
        return "" if told else f"{picture.name} is refused: {error}"
    if picture.pixels is None:
        return f"{picture.name} is read"
    if pixels.shape != picture.pixels.shape:
        return f"{picture.name} has the shape {pixels.shape}"
    apart = np.abs(pixels - picture.pixels).max()
    return "" if apart <= picture.tolerance else f"{picture.name} is {apart} levels off"


@cache
def all_of(pictures) -> list:
    return list(pictures())


@pytest.mark.parametrize(("pictures", "least"), [(sound_pictures, 130), (broken_pictures, 200)])
def test_every_odd_picture_is_read_rightly_and_every_broken_one_refused_with_its_reason(pictures, least):
    cases = all_of(pictures)
    assert len({case.data for case in cases}) >= least
    assert len({case.name for case in cases}) == len(cases)
    assert [problem for problem in map(outcome_of, cases) if problem] == []


def test_no_picture_starts_another_program():
    started = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "os.forkpty",
        ):
            started.append((event, arguments))

    sys.addaudithook(watch)  # cannot be taken away again, so it is switched off
    for case in all_of(broken_pictures):
        outcome_of(case)
    watching = False
    assert started == []


def assert_as_expected(results, expected):
    wrong = []
    for result, case in zip(results, expected, strict=True):
        if isinstance(result, SampleError):
            right = result.kind == case.kind and re.search(case.reason, str(result))
            # One printable sentence with the shard, and the key or the number.
            right = (
                right
                and str(result).startswith("In shard 0")
                and str(result).endswith(".")
                and str(result).isprintable()
                and len(str(result)) < 1000
            )
        else:
            right = case.kind is None and (result.key, result.query["text"]) == (case.key, case.text)
        if not right:
            wrong.append((case.key, str(result)))
    assert wrong == []


def test_every_damaged_sample_of_shards_becomes_a_reason_and_the_counts_add_up(malformed):
    path, expected = malformed
    assert len({case.data for case in expected}) == len(expected) >= 500
    results = ShardedDataset(path).read_many(range(len(expected)))
    assert_as_expected(results, expected)
    used, skipped = (sum(isinstance(result, kind) for result in results) for kind in (Sample, SampleError))
    assert used + skipped == len(expected)
    assert used == sum(case.kind is None for case in expected)


def test_one_by_one_side_by_side_and_over_http_the_outcome_is_the_same(malformed, tmp_path):
    path, expected = malformed
    local = ShardedDataset(path)
    for i, case in enumerate(expected):
        for read in (
            lambda i=i: local.read(i),
            lambda i=i: local.read_item(i, "query"),
            lambda i=i: list(local.records([i])),
        ):
            try:
                read()
            except SampleError:
                assert case.kind is not None
    with RangeServer(path) as server:
        for options in ({}, {"cache_dir": str(tmp_path), "span_samples": 16}):
            assert_as_expected(
                ShardedDataset(server.url, reading=Reading(**options)).read_many(range(len(expected))), expected
            )


def test_an_epoch_over_damaged_shards_reports_every_sample(malformed):
    path, expected = malformed
    data = DataSection(train=str(path), num_workers=0, max_corrupt_share=1)
    train = TrainLoader(data, ByteProcessor(max_width=10**6), 0, 1, 1, 1, 0)
    used = set()
    for batch in islice(train, len(expected)):
        train.coverage.add(train.coverage.count(batch.problems))
        used.update(key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid)
    assert used == {case.key for case in expected if case.kind is None}
    report = train.coverage_report()["malformed"]
    wanted = Counter(case.kind for case in expected)
    assert report["unusable"] == {kind: wanted[kind] for kind in KINDS if wanted[kind]}
    assert (
        report["samples"]
        == report["seen"]
        == report["unique"]
        == report["used"] + sum(report["unusable"].values())
        == len(expected)
    )


def test_bytes_changed_anywhere_in_a_sample_give_a_sample_or_a_reason():
    sound = pack(sound_members("key", negatives=[{"text": "n", "target_id": "n"}]))
    place, draw = Place("00000.tar", 0), np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(1500):
        data = bytearray(sound)
        for start in draw.integers(0, len(sound), draw.integers(1, 4)):
            data[start : start + 8] = draw.bytes(draw.integers(1, 9))[: len(sound) - start]
        data = bytes(data[: draw.integers(1, len(data) + 1)]) if draw.random() < 0.2 else bytes(data)
        try:
            outcomes[type(parse_sample(data, place, 1000))] += 1
        except SampleError as error:
            outcomes[error.kind] += 1
    assert set(outcomes) == {Sample, "damaged", "picture"}


def test_pictures_too_thin_for_the_model_cost_their_own_samples_alone(tmp_path):
    processor = ParallelEmbedder.from_backbone(
        str(tiny_backbone("qwen2_vl", tmp_path)), paths=1, prefix_length=1
    ).processor
    sizes = [(30, 40), (1, 300), (1, 199), (2000, 1)]
    side = {"text": "t", "images": []}
    samples = [
        Sample(f"{i}", {"text": "q", "images": [Image.new("RGB", size)]}, side, [], i, [], "00000.tar")
        for i, size in enumerate(sizes)
    ]
    batch = collate(samples, processor, 2, 0)
    assert batch.valid.tolist() == [True, False, True, False]
    assert [problem.kind for problem in batch.problems] == ["processor"] * 2
    assert (
        "sample '1' cannot be used: the processor refuses it (absolute aspect ratio must be smaller than 200"
        in batch.problems[0].sentence
    )
