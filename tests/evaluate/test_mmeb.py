import re
from pathlib import Path

import pytest

from pdfx.data.mmeb import GROUPS, SETS, find_set, present_sets
from pdfx.errors import UserError
from pdfx.evaluate.data_sets import averages

# Columns of the table of all results in the VLM2Vec paper (percent, rounded to one place), with its averages. The
# column "UniIR" does not add up there: its four grounding scores have the mean 62.15 and the table says 65.3.
PUBLISHED = {
    "VLM2Vec": (
        "74.5 80.3 67.9 91.5 75.8 44.0 43.6 79.8 39.6 14.7  69.0 54.4 52.0 30.7 34.8 49.8 42.1 43.0 61.2 62.0 "
        "80.9 49.9 75.4 80.0 75.7 73.1 65.5 87.6 16.2 60.2 56.5 87.8  80.6 88.7 84.0 90.9",
        {
            "Classification": 61.2,
            "VQA": 49.9,
            "Retrieval": 67.4,
            "Visual grounding": 86.1,
            "IND": 67.5,
            "OOD": 57.1,
            "Overall": 62.9,
        },
    ),
    "CLIP": (
        "55.8 34.7 51.1 50.7 43.4 28.5 25.5 75.6 43.4 19.2  7.5 3.8 4.0 4.6 1.4 4.0 9.4 8.2 41.3 7.0 "
        "30.7 12.6 78.9 79.6 59.5 57.7 60.4 67.5 11.4 55.0 41.1 81.0  33.8 56.9 61.3 55.1",
        {
            "Classification": 42.8,
            "VQA": 9.1,
            "Retrieval": 53.0,
            "Visual grounding": 51.8,
            "IND": 37.1,
            "OOD": 38.7,
            "Overall": 37.8,
        },
    ),
    "OpenCLIP": (
        "63.5 38.6 51.7 52.4 68.8 37.8 14.2 83.0 51.4 16.8  11.5 3.3 5.3 4.6 1.5 2.6 10.2 6.6 52.5 10.9 "
        "25.4 15.4 74.0 78.0 63.6 62.1 66.1 62.1 13.8 44.6 45.0 77.5  34.5 54.2 68.3 56.3",
        {
            "Classification": 47.8,
            "VQA": 10.9,
            "Retrieval": 52.3,
            "Visual grounding": 53.3,
            "IND": 39.3,
            "OOD": 40.2,
            "Overall": 39.7,
        },
    ),
}
KEY = "query_to_target/fused/precision@1"


def scored(percents: list[float]) -> dict[str, dict[str, float]]:
    return {item.name: {KEY: percent / 100, "queries": 1000.0} for item, percent in zip(SETS, percents, strict=True)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_averages_of_published_scores_are_the_published_averages(model):
    text, expected = PUBLISHED[model]
    found = {average.name: average for average in averages(scored([float(number) for number in text.split()]))}
    assert list(found) == list(expected)
    for name, percent in expected.items():
        assert found[name].metrics.keys() == {KEY}
        assert 100 * found[name].metrics[KEY] == pytest.approx(percent, abs=0.1 + 1e-9), (
            name
        )  # scores and averages are each rounded to 0.1


def test_an_average_is_the_plain_mean_over_the_data_sets_that_are_there():
    results = scored(list(range(36)))
    results = {name: results[name] for name in ("GQA", "MSCOCO", "RefCOCO")}
    places = {item.name: place for place, item in enumerate(SETS)}
    found = {average.name: (average.members, average.of, average.metrics[KEY] * 100) for average in averages(results)}
    gqa, coco, ref = (places[name] for name in results)
    assert found == {
        "VQA": (["GQA"], 10, pytest.approx(gqa)),
        "Visual grounding": (["MSCOCO", "RefCOCO"], 4, pytest.approx((coco + ref) / 2)),
        "IND": (["MSCOCO"], 20, pytest.approx(coco)),
        "OOD": (["GQA", "RefCOCO"], 16, pytest.approx((gqa + ref) / 2)),
        "Overall": (["GQA", "MSCOCO", "RefCOCO"], 36, pytest.approx((gqa + coco + ref) / 3)),
    }


def test_the_groups_have_the_sizes_of_mmebs_table():
    assert {name: len(group) for name, group in GROUPS.items()} == {
        "Classification": 10,
        "VQA": 10,
        "Retrieval": 12,
        "Visual grounding": 4,
        "IND": 20,
        "OOD": 16,
        "Overall": 36,
    }
    assert len({item.name for item in SETS}) == 36


def test_the_documentation_lists_the_data_sets_as_they_are_averaged():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \(\d+\) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    expected = [(item.name, item.meta_task, item.in_distribution) for item in SETS]
    assert [
        (name, task, split == ind) for task, ind, ood in rows for split in (ind, ood) for name in split.split(", ")
    ] == expected


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ImageNet_1K", "ImageNet-1K"),
        ("refcoco-matching", "RefCOCO-Matching"),
        ("Country-211", "Country211"),
        ("mscoco_i2t", "MSCOCO_i2t"),
    ],
)
def test_a_data_set_is_known_however_its_name_is_written(written, name):
    assert find_set(written).name == name


def test_a_name_that_is_not_mmebs_is_none():
    assert find_set("shards") is None and find_set("CIFAR-100") is None


def test_the_same_data_set_twice_is_refused():
    with pytest.raises(UserError, match="'ImageNet_1K' and 'imagenet-1k' are both MMEB's ImageNet-1K"):
        present_sets(["ImageNet_1K", "GQA", "imagenet-1k"])
