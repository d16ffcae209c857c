"""What remains of a run: ranks, figures, and embeddings that come back as they were."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from pdfx.config import parse_config
from pdfx.data import Candidates
from pdfx.errors import UserError
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.kept import kept_file, read_items, write_items
from pdfx.evaluate.retrieval import retrieval_metrics
from pdfx.study.comparison import of_ranks
from pdfx.study.records import Record, changed_setting, first_ranks, measure, read_record, settings_of, together


def items(rows: int, paths: int, seed: int, ids: torch.Tensor) -> EmbeddedItems:
    generator = torch.Generator().manual_seed(seed)
    embeddings = functional.normalize(torch.randn(rows, paths, 8, generator=generator), dim=-1)
    return EmbeddedItems(embeddings, functional.normalize(embeddings.mean(1), dim=-1), ids, np.arange(rows))


IDS = torch.tensor([0, 0, 7, 3, 9, 3, 7, 4])
SETS = {"t": (items(8, 2, 0, IDS), items(5, 2, 1, torch.tensor([0, 3, 4, 7, 9])))}


def test_means_over_ranks_equal_those_of_an_evaluation():
    ranks, figures = measure(SETS)
    queries, targets = SETS["t"]
    expected = retrieval_metrics(queries, targets, [1, 10])
    for direction in ("query_to_target", "target_to_query"):
        for score in ("path_0", "path_1", "fused", "maxsim"):
            for metric in ("mrr", "recall@1"):
                found = of_ranks(ranks[f"t/{direction}/{score}"], metric).mean()
                assert found == pytest.approx(expected[f"{direction}/{score}/{metric}"])
    assert ranks["t/query_to_target/items"].tolist() == [0, 0, 3, 1, 4, 1, 3, 2]
    assert figures["t"]["path_cka"] == pytest.approx(expected["path_cka"])


def test_a_query_without_a_right_answer_has_rank_zero_and_ties_count_against_the_model():
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.1, 0.2]])
    right = torch.tensor([[True, False, False], [False, False, False]])
    assert first_ranks(scores, right).tolist() == [2, 0]


def test_models_together_score_the_mean_of_their_scores():
    other = {"t": (items(8, 1, 5, IDS), items(5, 1, 6, SETS["t"][1].ids))}
    queries, targets = together([SETS, other])["t"]
    expected = sum(sets["t"][0].fused @ sets["t"][1].fused.T for sets in (SETS, other)) / 2
    torch.testing.assert_close(queries.fused @ targets.fused.T, expected)
    assert queries.paths.shape == (8, 1, 16)


@pytest.mark.parametrize("candidates", [None, Candidates(np.array([1, 2, 0]), np.array([0, 2, 3, 3, 3, 3, 3, 3, 3]))])
def test_embeddings_come_back_as_they_were(tmp_path, candidates):
    queries, targets = SETS["t"]
    queries = EmbeddedItems(queries.paths, queries.fused, queries.ids, queries.samples, candidates)
    path = kept_file(tmp_path, "mmeb/a set")
    assert path.parent == tmp_path / "evaluation"
    write_items(path, queries, targets)
    for before, after in zip((queries, targets), read_items(path), strict=True):
        for name in ("paths", "fused", "ids"):
            assert torch.equal(getattr(before, name), getattr(after, name))
        assert np.array_equal(before.samples, after.samples)
        assert (before.candidates is None) == (after.candidates is None)
    if candidates is not None:
        assert all(np.array_equal(*both) for both in zip(candidates, read_items(path)[0].candidates, strict=True))


BASE = {
    "model": {"path": "a"},
    "data": {"train": "b"},
    "train": {"output_dir": "c", "deepspeed": "zero1", "per_device_train_batch_size": 2, "max_steps": 3},
}


def config_of(**changes: dict):
    return parse_config({name: {**BASE.get(name, {}), **changes.get(name, {})} for name in {*BASE, *changes}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"output_dir": "d"}}, None),
        ({"model": {"cache_vision_file": "e"}}, None),
        ({"model": {"paths": 4}}, None),
        ({"model": {"paths": 3}}, "model.paths = 4, and not 3"),
        ({"train": {"seed": 9}}, "train.seed = "),
        ({"evaluate": {"recall_at": [7]}}, r"evaluate.recall_at = \[1, 5, 10\], and not \[7\]"),
        ({"model": {"lora": None}}, "model.lora.alpha = 64, and not None"),
    ],
)
def test_a_change_of_what_a_run_learns_is_named(changes, message):
    found = changed_setting(settings_of(config_of()), config_of(**changes))
    assert (found is None) == (message is None)
    assert message is None or re.search(message, found)


def test_a_newer_setting_matters_only_if_it_is_set():
    recorded = settings_of(config_of())
    del recorded["objective"]["symmetric"]
    assert changed_setting(recorded, config_of()) is None
    assert (
        changed_setting(recorded, config_of(objective={"symmetric": True}))
        == "objective.symmetric = None, and not True"
    )


def test_records_come_back_and_damage_is_named(tmp_path):
    ranks, figures = measure(SETS)
    Record({"row": "a", "paths": figures}, ranks).write(tmp_path, "a-seed1")
    found = read_record(tmp_path, "a-seed1")
    assert found.facts == {"row": "a", "paths": figures}
    assert all(np.array_equal(ranks[name], found.ranks[name]) for name in ranks) and len(found.ranks) == len(ranks)
    assert read_record(tmp_path, "a-seed2") is None
    (tmp_path / "a-seed1.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a-seed1.json and .npz cannot be read.*delete both to run it again"):
        read_record(tmp_path, "a-seed1")
