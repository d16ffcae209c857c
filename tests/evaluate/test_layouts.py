"""Which queries, targets and right answers an evaluation has, for each way in which captions, labels and pictures can
be laid out in records."""

import math
import random

import numpy as np
import pytest
import pytrec_eval
import torch
from tiny_shards import ByteProcessor, picture, write_records
from torch.nn import functional

from data_tools.build.builder import build_shards
from pdfx.config import EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.errors import UserError
from pdfx.evaluate.embedding import Evaluator
from pdfx.evaluate.retrieval import DIRECTIONS, evaluate_shards
from pdfx.model import EmbedderOutput

PATHS, DIMENSION, PICTURES = 2, 16, 6
MEASURES = {
    "recall@1": "success_1",
    "recall@5": "success_5",
    "recall@10": "success_10",
    "mrr": "recip_rank",
    "ndcg@10": "ndcg_cut_10",
}
EQUAL = 1e-6  # trec_eval keeps scores as float32, and prints none of them


def image(*numbers: int) -> dict:
    return {"images": [f"{number}.png" for number in numbers]}


def captioned(counts: list[int]) -> list[tuple[int, str]]:
    return [(number, f"caption {place} of {number}") for number, count in enumerate(counts) for place in range(count)]


LABELS = ["cat", "dog", "cat", "cow", "dog", "dog"]
TARGETS_ONLY = [{"target": {"text": f"nobody's {i}"}, "target_id": f"extra-{i}"} for i in range(5)]
OWN = [
    {"query": {"text": f"asks {i}"}, "target": {"text": f"answer {i % 4}"}, "target_id": f"t{i % 4}"} for i in range(9)
]
LAYOUTS = {
    "pairs": [{"query": {"text": f"caption {i}"}, "target": image(i)} for i in range(PICTURES)],
    "captions as queries": [{"query": {"text": text}, "target": image(i)} for i, text in captioned([5] * PICTURES)],
    "captions as targets": [
        {"query": image(i), "target": {"text": text}, "target_id": str(i)} for i, text in captioned([5] * PICTURES)
    ],
    "different numbers of captions": [
        {"query": image(i), "target": {"text": text}, "target_id": str(i)} for i, text in captioned([1, 9, 2, 5, 0, 3])
    ],
    "pictures to class labels": [{"query": image(i), "target": {"text": label}} for i, label in enumerate(LABELS)],
    "class labels to pictures": [
        {"query": {"text": label}, "target": image(i), "target_id": label} for i, label in enumerate(LABELS)
    ],
    "two captions and two pictures of one thing": [
        {"query": {"text": f"caption {a} of {i}"}, "target": image(i + 3 * b), "target_id": str(i)}
        for i in range(3)
        for a in (0, 1)
        for b in (0, 1)
    ],
    "one text, several pictures": [
        {"query": {"text": f"q{i}"}, "target": {"text": "x", **image(i % 4)}, "target_id": str(i % 2)} for i in range(8)
    ],
    "targets alone": [
        *({"query": image(i), "target": {"text": text}, "target_id": str(i)} for i, text in captioned([2] * PICTURES)),
        *TARGETS_ONLY,
    ],
    "own candidates": [
        *(
            record | {"candidates": [record["target_id"], f"extra-{i % 5}", f"t{(i + 1) % 4}"][: 2 + i % 2]}
            for i, record in enumerate(OWN)
        ),
        {"target": {"text": "another answer 2"}, "target_id": "t2"},
        *TARGETS_ONLY,
    ],
}


def build(folder, records: list[dict]) -> ShardedDataset:
    folder.mkdir()
    for i in range(PICTURES):
        (folder / f"{i}.png").write_bytes(picture(i))
    build_shards(write_records(folder, records), folder, folder / "shards", 7)
    return ShardedDataset(folder / "shards")


def embed(inputs: dict[str, torch.Tensor]) -> EmbedderOutput:
    """Unit vectors of random directions that depend on the item alone, whatever stands beside it."""
    rows = []
    for tokens, pixels in zip(inputs["input_ids"].tolist(), inputs["pixels"].tolist(), strict=True):
        content = ",".join(map(str, [pixels, *(token for token in tokens if token)]))
        rows.append(
            torch.randn(
                PATHS, DIMENSION, generator=torch.Generator().manual_seed(random.Random(content).getrandbits(60))
            )
        )
    paths = functional.normalize(torch.stack(rows), dim=-1)
    return EmbedderOutput(paths=paths, fused=functional.normalize(paths.flatten(1), dim=-1), fusion_logits=None)


def evaluate(dataset: ShardedDataset, max_corrupt_share: float = 0.5, say=None) -> dict[str, float]:
    settings = EvaluateSection(batch_size=4, max_corrupt_share=max_corrupt_share)
    return evaluate_shards(Evaluator(embed, ByteProcessor(), settings, say=say), dataset)


def trec(dataset: ShardedDataset, direction: str) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """Metrics of the fused embeddings by trec_eval, and how many are right among how many for each query; written down
    from the samples themselves."""
    samples = [(i, *dataset.shards[i // 7].raw(i % 7)[1:]) for i in range(len(dataset))]
    content = {
        (i, side): (record.target_id, value.text, tuple(members[name] for name in value.images))
        for i, record, members in samples
        for side in ("query", "target")
        if (value := getattr(record, side)) is not None
    }
    own = any(record.candidates for _, record, _ in samples)
    sides = {side: [i for i, _, _ in samples if (i, side) in content] for side in ("query", "target")}
    for side in ("target",) if own else ("query", "target"):
        sides[side] = list({content[i, side]: i for i in reversed(sides[side])}.values())
    asking, answering = ("query", "target") if direction == DIRECTIONS[0] else ("target", "query")
    fused = {
        (i, side): embed(ByteProcessor()([dataset.read_item(i, side)], [side])[0]).fused[0].numpy()
        for side, numbers in sides.items()
        for i in numbers
    }
    qrel, run = {}, {}
    for i in sides[asking]:
        record = samples[i][1]
        pool = [j for j in sides[answering] if not record.candidates or samples[j][1].target_id in record.candidates]
        qrel[str(i)] = {str(j): int(samples[j][1].target_id == record.target_id) for j in pool}
        run[str(i)] = {str(j): float(fused[i, asking] @ fused[j, answering]) for j in pool}
    found = pytrec_eval.RelevanceEvaluator(qrel, {"success.1,5,10", "recip_rank", "ndcg_cut.10"}).evaluate(run)
    means = {name: np.mean([values[measure] for values in found.values()]) for name, measure in MEASURES.items()}
    return means, [(sum(row.values()), len(row)) for row in qrel.values()]


def expected_chance(right: int, among: int) -> dict[str, float]:
    """Of a random order, from the probability that the first right one stands at each place."""
    first = [math.comb(among - place, right - 1) / math.comb(among, right) for place in range(1, among - right + 2)]
    gains = [1 / math.log2(place + 1) for place in range(1, 11)]
    recalls = {f"recall@{k}": sum(first[:k]) for k in (1, 5, 10)}
    return {
        **recalls,
        "mrr": sum(probability / place for place, probability in enumerate(first, start=1)),
        "ndcg@10": right / among * sum(gains[:among]) / sum(gains[:right]),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_and_chance_are_those_of_trec_eval_over_every_distinct_query_and_target(layout, tmp_path):
    dataset = build(tmp_path / "data", LAYOUTS[layout])
    metrics = evaluate(dataset)
    both = layout not in ("targets alone", "own candidates")
    assert any(name.startswith(DIRECTIONS[1]) for name in metrics) == both
    for direction, relevant in zip(DIRECTIONS[: 1 + both], ("relevant_targets", "relevant_queries"), strict=False):
        expected, sizes = trec(dataset, direction)
        chances = [expected_chance(*size) for size in sizes]
        for name, value in expected.items():
            assert metrics[f"{direction}/fused/{name}"] == pytest.approx(value, abs=EQUAL), name
            assert metrics[f"{direction}/chance/{name}"] == pytest.approx(
                np.mean([chance[name] for chance in chances]), abs=1e-9
            ), name
        assert metrics[relevant] == pytest.approx(np.mean([right for right, _ in sizes]))


@pytest.mark.parametrize(
    ("layout", "queries", "targets", "chance"),
    [
        ("captions as targets", 6, 30, 1 - math.comb(25, 5) / math.comb(30, 5)),
        ("captions as queries", 30, 6, 5 / 6),
        ("class labels to pictures", 3, 6, None),
        ("pictures to class labels", 6, 3, 1),
        ("own candidates", 9, 10, 1),
    ],
)
def test_every_distinct_target_is_searched(layout, queries, targets, chance, tmp_path):
    metrics = evaluate(build(tmp_path / "data", LAYOUTS[layout]))
    assert (metrics["queries"], metrics["targets"]) == (queries, targets)
    assert chance is None or metrics["query_to_target/chance/recall@5"] == pytest.approx(chance)


UNUSABLE = {
    "a query that the processor refuses": {"query": {"images": ["wide.png"]}, "target": {"text": "fine"}},
    "a target that the processor refuses": {"query": {"text": "fine"}, "target": {"images": ["wide.png"]}},
    "both sides": {"query": {"images": ["wide.png"]}, "target": {"images": ["wide.png"], "text": "also"}},
    "a damaged picture": {"query": {"text": "fine"}, "target": {"images": ["broken.png"]}},
    "a damaged record": {"query": {"text": "to be overwritten"}, "target": {"text": "fine"}},
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("layout", ["pairs", "captions as targets", "targets alone"])
def test_figures_without_unusable_samples_are_those_of_shards_without_them(layout, kind, tmp_path):
    sound = [{"key": f"sound-{i}", **record} for i, record in enumerate(LAYOUTS[layout])]
    bad = {"key": "bad", "target_id": "bad", **UNUSABLE[kind]}
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(PICTURES):
        (folder / f"{i}.png").write_bytes(picture(i))
    (folder / "wide.png").write_bytes(picture(90, 65, 2))
    (folder / "broken.png").write_bytes(picture(91))
    build_shards(write_records(folder, [*sound[:3], bad, *sound[3:]]), folder, folder / "shards", 100)
    tar = folder / "shards" / "00000.tar"
    data = tar.read_bytes().replace(picture(91)[50:120], bytes(70)).replace(b"to be overwritten", b'"not a valid JSON')
    tar.write_bytes(data)

    said: list[str] = []
    metrics = evaluate(ShardedDataset(folder / "shards"), say=said.append)
    expected = evaluate(build(tmp_path / "sound", sound))
    assert len(said) == 1 and "'bad'" in said[0] if kind != "a damaged record" else "number 3" in said[0]
    assert metrics["left_out"] == 1
    counts = {"left_out", "left_out_queries", "left_out_targets"}
    kept_target = layout == "targets alone" and kind == "a query that the processor refuses"
    assert (metrics["left_out_queries"], metrics["left_out_targets"]) == (
        (0, 0) if kind == "a damaged record" else (1, 0 if kept_target else 1)
    )
    if kept_target:
        # What is searched in need not have a query there, so it stays.
        assert metrics["targets"] == expected["targets"] + 1
        return
    assert {name: value for name, value in metrics.items() if name not in counts} == {
        name: value for name, value in expected.items() if name not in counts
    }


def test_a_query_goes_with_the_last_of_its_targets_and_candidates_are_renumbered(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "wide.png").write_bytes(picture(90, 65, 2))
    wide = {"images": ["wide.png"]}
    fine = [{"query": {"text": f"q{i}"}, "target": {"text": f"t{i}"}, "target_id": str(i)} for i in range(3)]
    records = [
        {"query": {"text": "lost"}, "target": wide, "target_id": "wide", "candidates": ["wide", "1"]},
        *(record | {"candidates": [record["target_id"], "wide", "2", "0"]} for record in fine),
        {"query": {"text": "has another"}, "target": wide, "target_id": "2", "candidates": ["2", "1"]},
    ]
    build_shards(write_records(folder, records), folder, folder / "shards", 2)
    metrics = evaluate(ShardedDataset(folder / "shards"))
    assert [metrics[name] for name in ("queries", "targets", "left_out", "left_out_queries", "left_out_targets")] == [
        4,
        3,
        2,
        1,
        2,
    ]
    assert metrics["candidates"] == np.mean([2, 3, 2, 2])
    rest = [
        fine[0] | {"candidates": ["0", "2"]},
        fine[1] | {"candidates": ["1", "2", "0"]},
        fine[2] | {"candidates": ["2", "0"]},
    ]
    rest.append(
        {"query": {"text": "has another"}, "target": fine[2]["target"], "target_id": "2", "candidates": ["2", "1"]}
    )
    expected = evaluate(build(tmp_path / "rest", rest))
    assert all(metrics[name] == value for name, value in expected.items() if "/" in name)


def test_more_than_the_share_ends_the_evaluation_and_names_samples(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "wide.png").write_bytes(picture(90, 65, 2))
    records = [
        {"key": f"key-{i}", "query": {"text": f"q{i}"}, "target": {"images": ["wide.png"], "text": str(i)}}
        for i in range(2)
    ]
    records += [{"query": {"text": f"fine {i}"}, "target": {"text": f"t{i}"}} for i in range(8)]
    build_shards(write_records(folder, records), folder, folder / "shards", 5)
    dataset = ShardedDataset(folder / "shards")
    with pytest.raises(
        UserError, match=r"2 of the 10 samples of .* could not be used.*0\.1\b.*'key-0'.*65 pixels wide.*--processor"
    ):
        evaluate(dataset, max_corrupt_share=0.1)
    assert evaluate(dataset, max_corrupt_share=0.2)["left_out"] == 2


@pytest.mark.parametrize("side", ["query", "target"])
def test_texts_that_are_cut_are_counted_by_side(side, tmp_path):
    other = {"query": "target", "target": "query"}[side]
    records = [{side: {"text": f"{i} {'long ' * 10 * (i < 3)}"}, other: {"text": f"short {i}"}} for i in range(5)]
    metrics = evaluate(build(tmp_path / "data", records))
    plural = {"query": "queries", "target": "targets"}
    assert (metrics[f"truncated_{plural[side]}"], metrics[f"truncated_{plural[other]}"]) == (3, 0)


def test_one_sound_sample_with_a_text_is_enough_for_the_target_that_many_share(tmp_path):
    """Its first sample has a broken picture on the other side."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(PICTURES):
        (folder / f"{i}.png").write_bytes(picture(i))
    build_shards(write_records(folder, LAYOUTS["pictures to class labels"]), folder, folder / "shards", 100)
    tar = folder / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(picture(0)[50:120], bytes(70)))
    metrics = evaluate(ShardedDataset(folder / "shards"))
    assert [metrics[name] for name in ("queries", "targets", "left_out_queries", "left_out_targets")] == [5, 3, 1, 0]
