import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_reference import plain_metrics
from tiny_exports import PATHS

from pdfx.config import EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.errors import UserError
from pdfx.evaluate.exported import embed_on, evaluate_export
from pdfx.evaluate.metrics import chance_metrics
from pdfx.evaluate.retrieval import evaluate_shards
from pdfx.exports import load_export
from pdfx.ranks import launched_ranks

SETTINGS = EvaluateSection(batch_size=4, recall_at=[1, 3])
QUERIES, TARGETS = 13, 10
EQUAL = 1e-9  # sums of at most 13 float64 terms; every tie and every order of scores is the same


@pytest.fixture(scope="module")
def metrics(export, shards):
    return evaluate_export(export, shards, SETTINGS)


@pytest.fixture(scope="module")
def embedded(export, shards):
    """Every query, and the first target of each identity, embedded one by one."""
    model, dataset = load_export(export), ShardedDataset(shards)
    samples = [dataset.read(i) for i in range(len(dataset))]
    first = {sample.target_id: sample for sample in reversed(samples)}
    queries = [model.embed([sample.query], "query") for sample in samples]
    targets = {identity: model.embed([sample.target], "target") for identity, sample in first.items()}
    return queries, np.array([sample.target_id for sample in samples]), list(targets.values()), np.array(list(targets))


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
            expected |= {f"{direction}/{score}/{name}": np.mean(per_query) for name, per_query in plain_metrics(values, relevant, [1, 3]).items()}
        chance = chance_metrics(torch.from_numpy(relevant.sum(1)), relevant.shape[1], [1, 3])
        expected |= {f"{direction}/chance/{name}": float(per_query.mean()) for name, per_query in chance.items()}
    assert metrics.keys() - expected.keys() == {"path_cosine", "queries", "targets"}
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=EQUAL), name


def test_queries_that_share_a_target_are_each_right_for_it(metrics):
    # 3 of the 13 queries are right for one of the 10 targets and 2 for another; with the others' one each that makes 13 of 130 pairs.
    assert metrics["query_to_target/chance/recall@1"] == pytest.approx(1 / TARGETS, abs=EQUAL)
    assert metrics["target_to_query/chance/recall@1"] == pytest.approx(QUERIES / (TARGETS * QUERIES), abs=EQUAL)


def test_path_cosine_is_the_mean_over_pairs_of_paths_and_both_sides(metrics, embedded):
    queries, _, targets, _ = embedded
    apart = ~np.eye(PATHS, dtype=bool)
    sides = [np.mean([(item.paths[0] @ item.paths[0].T).numpy()[apart].mean() for item in side]) for side in (queries, targets)]
    assert metrics["path_cosine"] == pytest.approx(np.mean(sides), abs=1e-5)  # float32 products of entries below 1
    assert abs(metrics["path_cosine"]) < 0.99


def evaluate_as_rank(rank: int, world_size: int, port: int, export: Path, shards: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with launched_ranks() as ranks:
        model = load_export(export)
        embed, sizes = embed_on(model), []

        def counted(inputs):
            sizes.append(len(inputs["input_ids"]))
            return embed(inputs)

        metrics = evaluate_shards(counted, ShardedDataset(shards), model.processor, SETTINGS, ranks.rank, ranks.world_size)
    (out / f"{rank}.json").write_text(json.dumps({"metrics": metrics, "sizes": sizes}))


def test_two_ranks_get_the_metrics_of_one_and_make_the_same_forward_passes(metrics, export, shards, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(evaluate_as_rank, (2, port, export, shards, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    # Of 13 queries each rank holds 7, of 10 targets 5, in batches of 4; the last query of rank 1 is a filler.
    assert first["sizes"] == [4, 3, 4, 1]
    assert first["metrics"] == pytest.approx(metrics, abs=EQUAL, rel=1e-5)  # path_cosine comes from float32 embeddings of batches of other sizes


def test_progress_counts_every_item(export, shards):
    seen = []
    evaluate_export(export, shards, SETTINGS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (QUERIES + TARGETS, QUERIES + TARGETS)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_damaged_sample_is_refused_by_name(export, shards, tmp_path):
    for path in shards.iterdir():
        data = path.read_bytes()
        if path.suffix == ".tar":
            data = data.replace(b"\x89PNG\r\n", b"\x89XXX\r\n", 1)
        (tmp_path / path.name).write_bytes(data)
    with pytest.raises(UserError, match="must be sound.*sample"):
        evaluate_export(export, tmp_path, SETTINGS)
