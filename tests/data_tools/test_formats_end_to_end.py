"""Data sets in the layouts that MMEB, ms-swift and Tevatron publish: converted, trained on together, and evaluated on
one by one, as users do it."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import warm
import yaml
from tiny_formats import write_mmeb_eval, write_mmeb_train, write_swift, write_tevatron
from tiny_runs import ROOT, tiny_tree

from pdfx.cli.app import main

pytestmark = pytest.mark.process

SAMPLES = 6
COMMANDS = """
import json, sys
from pdfx.cli.app import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as stop:
        if stop.code:
            raise
"""
"""Several command lines in one process, which then imports torch once."""


def pdfx(*words) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A folder with one directory of shards per data set, each built from its format's own files."""
    folder = tmp_path_factory.mktemp("formats")
    classification, grounding = write_mmeb_eval(folder / "mmeb", SAMPLES)
    queries, corpus = write_tevatron(folder / "tevatron", SAMPLES)
    corpus = f"corpus={corpus}"
    sources = {
        "train/mmeb": (
            write_mmeb_train(folder / "mmeb_train", SAMPLES),
            "--images",
            folder / "mmeb_train",
            "--option",
            "split=original",
        ),
        "train/swift": (write_swift(folder / "swift", SAMPLES),),
        "train/tevatron": (queries, "--option", corpus),
        "evaluation/VOC2007": (classification, "--images", folder / "mmeb"),
        "evaluation/RefCOCO-Matching": (grounding, "--images", folder / "mmeb"),
        "evaluation/tevatron": (queries, "--option", corpus, "--option", "documents=all"),
    }
    for name, words in sources.items():
        pdfx("shards", "build", *words, "--out", folder / "shards" / name, "--workers", 1)
    return folder / "shards"


@pytest.fixture(scope="module")
def run(shards) -> Path:
    """One step on all three training sets with an evaluation on two sets, converted to ``export`` beside it."""
    folder = shards.parent
    data = {
        "train": [str(path) for path in sorted((shards / "train").iterdir())],
        "evaluation": [str(shards / "evaluation" / name) for name in ("VOC2007", "RefCOCO-Matching")],
        "sub_batch_pairs": 1,
        "hard_negatives": 1,
    }
    train = {"max_steps": 1, "per_device_train_batch_size": 3 * SAMPLES, "eval_steps": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_tree(folder, data=data, train=train)))
    words = json.dumps(
        [["train", str(folder / "recipe.yaml")], ["convert", str(folder / "run"), "--out", str(folder / "export")]]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = warm.run(
        [sys.executable, "-c", COMMANDS, words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def records(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_one_step_as_long_as_an_epoch_learns_from_every_sample_of_every_format(run):
    step = next(record for record in records(run, "metrics.jsonl") if "loss" in record)
    assert math.isfinite(step["loss"]) and step["corrupt"] == 0
    *_, coverage = records(run, "coverage.jsonl")
    assert {name: of["seen"] for name, of in coverage["data_sets"].items()} == dict.fromkeys(
        ("mmeb", "swift", "tevatron"), SAMPLES
    )


def test_a_run_evaluates_each_of_several_data_sets_and_averages_them(run):
    told = next(
        record for record in records(run, "metrics.jsonl") if any(name.startswith("evaluation/") for name in record)
    )
    assert [told[f"evaluation/{name}/queries"] for name in ("VOC2007", "RefCOCO-Matching")] == [SAMPLES, SAMPLES]
    key = "query_to_target/fused/precision@1"
    mean = (told[f"evaluation/VOC2007/{key}"] + told[f"evaluation/RefCOCO-Matching/{key}"]) / 2
    assert told[f"evaluation/averages/Overall/{key}"] == pytest.approx(mean)


def test_the_export_is_evaluated_among_the_candidates_and_documents_that_the_files_name(run, shards, tmp_path):
    sets = [shards / "evaluation" / name for name in ("VOC2007", "RefCOCO-Matching", "tevatron")]
    pdfx("evaluate", run.parent / "export", *sets, "--json", tmp_path / "metrics.json")
    told = json.loads((tmp_path / "metrics.json").read_text())["data_sets"]
    assert {name: (of["queries"], of["targets"], of.get("candidates")) for name, of in told.items()} == {
        "VOC2007": (SAMPLES, 4, 4),
        "RefCOCO-Matching": (SAMPLES, SAMPLES + 2, 3),
        "tevatron": (SAMPLES, 2 * SAMPLES, None),
    }
    assert all(math.isfinite(value) for of in told.values() for value in of.values())
    chance = {name: of["query_to_target/chance/recall@1"] for name, of in told.items()}
    assert chance == pytest.approx({"VOC2007": 1 / 4, "RefCOCO-Matching": 1 / 3, "tevatron": 1 / (2 * SAMPLES)})
