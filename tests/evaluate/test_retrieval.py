import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_reference import plain_metrics
from tiny_exports import PATHS

from pdfx.config import EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.distributed.world import launched_ranks
from pdfx.embedder.exports import load_export
from pdfx.evaluate.data_sets import evaluate_export, evaluator_of
from pdfx.evaluate.metrics import chance_metrics
from pdfx.evaluate.retrieval import evaluate_shards

SETTINGS = EvaluateSection(batch_size=4, recall_at=[1, 3])
QUERIES, TARGETS = 13, 12
COUNTS = {
    "queries",
    "targets",
    "relevant_targets",
    "left_out",
    "left_out_queries",
    "left_out_targets",
    "truncated_queries",
    "truncated_targets",
}
EQUAL = 1e-9  # sums of at most 13 float64 terms; every tie and every order of scores is the same


@pytest.fixture(scope="module")
def metrics(export, shards):
    return evaluate_export(export, [shards], SETTINGS)["shards"]


@pytest.fixture(scope="module")
def among_candidates(export, candidate_shards):
    return evaluate_export(export, [candidate_shards], SETTINGS)["shards"]


@pytest.fixture(scope="module")
def embedded(export, shards):
    """Every query, and every distinct target, embedded one by one."""
    model, dataset = load_export(export), ShardedDataset(shards)
    samples = [dataset.read(i) for i in range(len(dataset))]
    distinct = {(sample.target_id, sample.target["text"]): sample for sample in samples}
    queries = [model.embed([sample.query], "query") for sample in samples]
    targets = [model.embed([sample.target], "target") for sample in distinct.values()]
    return (
        queries,
        np.array([sample.target_id for sample in samples]),
        targets,
        np.array([identity for identity, _ in distinct]),
    )


def plain_scores(queries, targets) -> dict[str, np.ndarray]:
    score = {f"path_{k}": lambda q, t, k=k: float(q.paths[0, k] @ t.paths[0, k]) for k in range(PATHS)}
    score["fused"] = lambda q, t: float(q.fused[0] @ t.fused[0])
    score["maxsim"] = lambda q, t: float((q.paths[0] @ t.paths[0].T).max(1).values.mean())
    return {name: np.array([[function(q, t) for t in targets] for q in queries]) for name, function in score.items()}


def test_metrics_equal_a_plain_evaluation_of_items_embedded_one_by_one(metrics, embedded):
    queries, query_ids, targets, target_ids = embedded
    assert (metrics["queries"], metrics["targets"]) == (len(queries), len(targets)) == (QUERIES, TARGETS)
    expected = {}
    for direction, asking, answering, relevant in (
        ("query_to_target", queries, targets, query_ids[:, None] == target_ids),
        ("target_to_query", targets, queries, target_ids[:, None] == query_ids),
    ):
        for score, values in plain_scores(asking, answering).items():
            expected |= {
                f"{direction}/{score}/{name}": np.mean(per_query)
                for name, per_query in plain_metrics(values, relevant, [1, 3]).items()
            }
        chance = chance_metrics(torch.from_numpy(relevant.sum(1)), relevant.shape[1], [1, 3])
        expected |= {f"{direction}/chance/{name}": float(per_query.mean()) for name, per_query in chance.items()}
    assert metrics.keys() - expected.keys() == {"path_cosine", "path_cka", "path_r2", "relevant_queries", *COUNTS}
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=EQUAL), name


def test_queries_and_targets_that_share_an_identity_are_each_right_for_one_another(metrics):
    # 3 of the 13 queries are right for each of 3 of the 12 targets, and 2 for another one; with the others' one each
    # that makes 19 of 156 pairs.
    assert metrics["query_to_target/chance/recall@1"] == pytest.approx(19 / (TARGETS * QUERIES), abs=EQUAL)
    assert metrics["target_to_query/chance/recall@1"] == pytest.approx(19 / (TARGETS * QUERIES), abs=EQUAL)
    assert metrics["relevant_targets"] == pytest.approx(19 / QUERIES) and metrics["relevant_queries"] == pytest.approx(
        19 / TARGETS
    )


def test_metrics_among_candidates_equal_a_plain_loop_over_each_querys_own(among_candidates, export, candidate_shards):
    model, dataset = load_export(export), ShardedDataset(candidate_shards)
    records = [record for _, record in dataset.records()]
    targets = {
        record.target_id: model.embed([dataset.read_item(i, "target")], "target") for i, record in enumerate(records)
    }
    asking = [i for i, record in enumerate(records) if record.query is not None]
    expected: dict[str, list[float]] = {}
    for i in asking:
        query, candidates = model.embed([dataset.read_item(i, "query")], "query"), records[i].candidates
        relevant = np.array([[name == records[i].target_id for name in candidates]])
        for score, values in plain_scores([query], [targets[name] for name in candidates]).items():
            own = plain_metrics(values, relevant, [1, 3])
            for name, (value,) in {"precision@1": own["recall@1"], **own}.items():
                expected.setdefault(f"query_to_target/{score}/{name}", []).append(value)
        chance = chance_metrics(torch.tensor([1]), len(candidates), [1, 3])
        for name, value in {"precision@1": chance["recall@1"], **chance}.items():
            expected.setdefault(f"query_to_target/chance/{name}", []).append(float(value))
    assert among_candidates.keys() - expected.keys() == {"path_cosine", "path_cka", "candidates", *COUNTS}
    for name, values in expected.items():
        assert among_candidates[name] == pytest.approx(np.mean(values), abs=EQUAL), name
    assert [among_candidates[name] for name in ("queries", "targets", "candidates")] == [
        7,
        9,
        np.mean([2 + i for i in range(7)]),
    ]


def test_targets_that_no_query_asks_for_leave_out_the_direction_that_would_ask_for_queries(among_candidates, metrics):
    assert not any(name.startswith("target_to_query") for name in among_candidates)
    assert any(name.startswith("target_to_query") for name in metrics)


def test_path_cosine_is_the_mean_over_pairs_of_paths_and_both_sides(metrics, embedded):
    queries, _, targets, _ = embedded
    apart = ~np.eye(PATHS, dtype=bool)
    sides = []
    for side in (queries, targets):
        paths = np.stack([item.paths[0].numpy() for item in side])
        centred = paths - paths.mean(0)
        centred /= np.linalg.norm(centred, axis=-1, keepdims=True)
        sides.append(np.mean([(rows @ rows.T)[apart].mean() for rows in centred]))
    assert metrics["path_cosine"] == pytest.approx(np.mean(sides), abs=1e-5)  # float32 products of entries below 1
    assert abs(metrics["path_cosine"]) < 0.99


@pytest.fixture(scope="module")
def damaged(shards, tmp_path_factory):
    """The same samples, the first picture of one of them damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    for path in shards.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(
            data.replace(b"\x89PNG\r\n", b"\x89XXX\r\n", 1) if path.name == "00001.tar" else data
        )
    return folder


def evaluate_as_rank(rank: int, world_size: int, port: int, export: Path, data_sets: list[Path], out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    told = []
    with launched_ranks() as ranks:
        model = load_export(export)
        own = evaluator_of(model, SETTINGS, ranks)
        for shards in data_sets:
            sizes = []

            def counted(inputs, sizes=sizes):
                sizes.append(len(inputs["input_ids"]))
                return own.embed(inputs)

            said = []
            metrics = evaluate_shards(replace(own, embed=counted, say=said.append), ShardedDataset(shards))
            told.append({"metrics": metrics, "sizes": sizes, "said": said})
    (out / f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.process
def test_two_ranks_get_the_metrics_of_one_and_make_the_same_forward_passes(
    metrics, among_candidates, export, shards, candidate_shards, damaged, tmp_path
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(
        evaluate_as_rank, (2, port, export, [shards, candidate_shards, damaged], tmp_path), nprocs=2
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    # Of 13 queries each rank holds 7, of 12 targets 6, in batches of 4; the last query of rank 1 is a filler. Of 7
    # queries 4, of 9 targets 5.
    assert [told["sizes"] for told in first] == [[4, 3, 4, 2], [4, 4, 1], [4, 3, 4, 2]]
    assert [len(told["said"]) for told in first] == [0, 0, 1] and "00001.tar" in first[2]["said"][0]
    of_one = evaluate_export(export, [damaged], SETTINGS)[damaged.name]
    assert [of_one[name] for name in ("left_out", "left_out_queries", "queries")] == [1, 1, QUERIES - 1]
    for told, alone in zip(first, (metrics, among_candidates, of_one), strict=True):
        assert told["metrics"] == pytest.approx(
            alone, abs=EQUAL, rel=1e-5
        )  # path_cosine comes from float32 embeddings of batches of other sizes


def test_progress_counts_every_item_of_every_data_set(export, shards, candidate_shards):
    seen: dict[str, list] = {}

    def counter(description: str):
        seen[description] = []
        return lambda done, total: seen[description].append((done, total))

    evaluate_export(export, [shards, candidate_shards], SETTINGS, counters=counter)
    names = [f"embedding {path.parent.name}/shards" for path in (shards, candidate_shards)]
    assert list(seen) == names
    assert [seen[name][-1] for name in names] == [(QUERIES + TARGETS, QUERIES + TARGETS), (7 + 9, 7 + 9)]
    assert all(counts == sorted(counts) for counts in seen.values())
