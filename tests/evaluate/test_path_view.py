"""The diversity of an export's paths as it is measured and shown, from real shards."""

import json
import re

import numpy as np
import pytest
from tiny_exports import PATHS
from tiny_models import tiny_backbone

from pdfx.config import EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.embedder.exports import load_export
from pdfx.evaluate.paths.view import show_diversity
from pdfx.model import ParallelEmbedder

SETTINGS = EvaluateSection(batch_size=4)


@pytest.fixture(scope="module")
def shown(export, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("diversity") / "page.html"
    figures, view = show_diversity(export, shards, SETTINGS, out)
    return figures, view, out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def embedded(export, shards):
    """Queries, targets, and which target is right for each query, of all distinct items in their order."""
    dataset, model = ShardedDataset(shards), load_export(export)
    samples = [dataset.read(number) for number in range(len(dataset))]
    targets = {(sample.target_id, sample.target["text"]): sample.target for sample in samples}
    queries = model.embed([sample.query for sample in samples], "query").paths
    return queries, model.embed(list(targets.values()), "target").paths, list(targets), samples


def test_figures_are_those_of_the_models_embeddings(shown, embedded):
    figures, _, _ = shown
    queries, targets, keys, samples = embedded
    assert figures.items == {"query": len(queries), "target": len(targets)} == {"query": 13, "target": 12}
    for name, paths in (("query", queries), ("target", targets)):
        centred = paths.double().numpy() - paths.double().numpy().mean(0)
        centred /= np.linalg.norm(centred, axis=2, keepdims=True)
        expected = np.einsum("nkd,nld->kl", centred, centred) / len(centred)
        np.testing.assert_allclose(figures.likeness[name]["cosine"].matrix, expected, atol=1e-5)
    best = np.zeros((len(queries), PATHS))
    for row, sample in enumerate(samples):
        right = np.array([identity == sample.target_id for identity, _ in keys])
        for k in range(PATHS):
            scores = (targets[:, k] @ queries[row, k]).numpy()
            best[row, k] = 1 / min(1 + ((scores >= score) & ~right).sum() for score in scores[right])
    found = figures.directions["query_to_target"].oracle["mrr"].paths
    assert (found.alone, found.best) == (pytest.approx(best.mean()), pytest.approx(best.max(1).mean()))
    assert figures.directions["query_to_target"].chance == pytest.approx(6 / 12)


def test_the_page_shows_every_table_with_a_sentence_and_what_each_path_finds(shown, embedded):
    figures, view, page = shown
    queries, targets, keys, samples = embedded
    for finding in view.findings:
        assert finding.title in page and len(finding.reading) > 50
        assert all(len(row) == len(finding.header) for row in finding.rows)
        assert all(cell in page for row in finding.rows for cell in row)
    assert not re.search(r"(src|srcset|href)=\"(?!data:image/)", page) and "<script" not in page
    for example, row in zip(view.examples, (0, 3, 6, 9), strict=True):
        assert [column.label for column in example.columns] == [*(f"path {k}" for k in range(PATHS)), "fused"]
        for k, column in enumerate(example.columns[:PATHS]):
            order = (targets[:, k] @ queries[row, k]).argsort(descending=True)[:3].tolist()
            assert [answer.card.text for answer in column.answers] == [keys[number][1] for number in order]
            assert [answer.right for answer in column.answers] == [
                keys[number][0] == samples[row].target_id for number in order
            ]
    # Of the 13 queries every third has one picture.
    assert [len(picture.paths) for picture in view.maps] == [PATHS] * 4


def test_figures_are_plain_json(shown):
    figures, _, _ = shown
    plain = json.loads(json.dumps(figures.plain(), allow_nan=False))
    assert plain["attention"]["query"]["prefix"]["paths"] == figures.attention["query"].prefix.paths
    assert (
        len(plain["attention"]["query"]["prefix_by_layer"]) == PATHS
        and plain["attention"]["target"]["pictures"] is None
    )


def test_queries_with_candidates_of_their_own_are_asked_among_these(export, candidate_shards):
    figures, _ = show_diversity(export, candidate_shards, SETTINGS)
    assert list(figures.directions) == ["query_to_target"]
    # Queries have 2 to 8 candidates, of which 2 are neighbours.
    expected = sum(2 / (2 + number) for number in range(7)) / 7
    assert figures.directions["query_to_target"].chance == pytest.approx(expected)


@pytest.mark.parametrize("length", [4, 0])
def test_one_path_has_nothing_to_compare(shards, tmp_path, length):
    backbone = tiny_backbone("llava_next", tmp_path / "backbone")
    ParallelEmbedder.from_backbone(str(backbone), paths=1, prefix_length=length).save_pretrained(tmp_path / "export")
    figures, view = show_diversity(tmp_path / "export", shards, SETTINGS, tmp_path / "page.html")
    assert "one path, so there is nothing to compare" in (tmp_path / "page.html").read_text()
    assert [finding.header[0] for finding in view.findings] == ["side", "side, path"]
    assert figures.likeness == figures.directions == {} and figures.attention["query"].apart is None
    assert (figures.attention["query"].prefix.paths[0] > 0.1) == (length > 0)
    assert [[column.label for column in example.columns] for example in view.examples] == [["path 0"]] * 4
