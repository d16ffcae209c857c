import base64
import io
import itertools
import json
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_exports import PATHS
from tiny_runs import tiny_config

from pdfx.config import EvaluateSection, ObjectiveSection, dump_config, load_config
from pdfx.data import ShardedDataset
from pdfx.embedder.exports import load_export
from pdfx.errors import UserError
from pdfx.evaluate.report import evaluation_curve, origin_of, write_report
from pdfx.evaluate.retrieval import DIRECTIONS
from pdfx.evaluate.tables import metric_rows
from pdfx.objective import Objective, PairEmbeddings, PairIdentities
from pdfx.telemetry.metrics import write_record

SETTINGS = EvaluateSection(batch_size=4)
STEPS = 4


class Page(HTMLParser):
    """What a page holds: its tables' cells, its pictures, everything it refers to, the classes of list items, and its
    text."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.images, self.references, self.items, self.tags, self.text = [], [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.references += [attributes[name] for name in ("src", "srcset", "href") if name in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(attributes)
        elif tag == "li":
            self.items.append(attributes["class"])

    def handle_data(self, data):
        self.text.append(data)
        if self.tables and self.tables[-1] and self.tables[-1][-1] and self.tags[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with the metrics that the objective gives on random embeddings."""
    folder = tmp_path_factory.mktemp("runs") / "a <run>"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        dump_config(tiny_config(folder.parent, "llava_next", model={"paths": PATHS})), encoding="utf-8"
    )
    objective = Objective(ObjectiveSection(), PATHS, 8, 0, [])
    generator = torch.Generator().manual_seed(0)
    ids, yes = torch.arange(6), torch.ones(6, dtype=torch.bool)
    nothing = torch.zeros(6, 0, dtype=torch.int64)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for step in range(1, STEPS + 1):
            paths = torch.nn.functional.normalize(torch.randn(2, 6, PATHS, 8, generator=generator), dim=-1)
            fused = torch.nn.functional.normalize(paths.mean(2), dim=-1)
            none, none_fused = torch.zeros(6, 0, PATHS, 8), torch.zeros(6, 0, 8)
            embeddings = PairEmbeddings(*paths, none), PairEmbeddings(*fused, none_fused)
            identities = PairIdentities(ids, nothing, yes, nothing.bool())
            _, metrics = objective(*embeddings, identities, torch.tensor(-3.0), step)
            objective.learn(*paths, yes)
            write_record(stream, {"step": step, **{name: float(value) for name, value in metrics.items()}})
        stream.write('{"step": 5, "lo')
    return folder


@pytest.fixture(scope="module")
def report(run, export, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    metrics = write_report(run, export, shards, out, SETTINGS)
    return metrics, Page(out.read_text(encoding="utf-8"))


def test_the_tables_show_every_metric_of_both_directions(report):
    metrics, page = report
    for table, direction in zip(page.tables[:2], DIRECTIONS, strict=True):
        rows = metric_rows(metrics, direction)
        assert table[0] == ["score", "recall@1", "recall@5", "recall@10", "mrr", "ndcg@10"]
        assert [row[0] for row in table[1:]] == [
            "path 0",
            "path 1",
            "path 2",
            "fused",
            "best of paths (MaxSim)",
            "chance",
        ]
        assert [row[1:] for row in table[1:]] == [
            [f"{value:.3f}" for value in values.values()] for values in rows.values()
        ]


def test_the_page_loads_nothing_and_runs_nothing(report):
    _, page = report
    assert page.references
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)


def test_every_picture_decodes_and_is_told_in_words(report):
    _, page = report
    for image in page.images:
        assert len(image["alt"]) > 5
        data = base64.b64decode(image["src"].partition("base64,")[2])
        if image["src"].startswith("data:image/svg+xml"):
            assert ElementTree.fromstring(data).tag.endswith("svg")
        else:
            Image.open(io.BytesIO(data)).verify()


def test_curves_of_the_objectives_own_metrics_are_drawn(report):
    _, page = report
    charts = [image["alt"] for image in page.images if "svg" in image["src"]]
    assert [alt.split(":")[0].split(" over")[0] for alt in charts[:4]] == [
        "Line chart of the contrastive losses",
        "Two line charts",
        "Line chart of R² between paths",
        "Line chart of path cosine",
    ]
    assert all(f"path {k}" in charts[0] for k in range(PATHS))
    assert f"steps 1 to {STEPS}" in charts[0]


def test_the_page_shows_how_far_the_paths_differ(report):
    """The page of ``pdfx diversity`` has the same section; test_path_view.py holds it to its figures."""
    _, page = report
    assert [table[0][0] for table in page.tables[2:]] == [
        "side, figure",
        "side",
        "direction, items",
        "direction, figure",
        "direction, of what",
        "side, path",
    ]
    assert sum(image["alt"].startswith("What path") for image in page.images) == 4 * PATHS


def test_examples_mark_as_right_what_bears_the_querys_target(report, export, shards):
    _, page = report
    model, dataset = load_export(export), ShardedDataset(shards)
    samples = [dataset.read(i) for i in range(len(dataset))]
    distinct = {(sample.target_id, sample.target["text"]): sample for sample in samples}
    targets = model.embed([sample.target for sample in distinct.values()], "target")
    queries = model.embed([sample.query for sample in samples], "query")
    identities = [identity for identity, _ in distinct]
    shown = [i * len(samples) // 8 for i in range(8)]
    expected = []
    for i in shown:
        best = (targets.fused @ queries.fused[i]).topk(5).indices.tolist()
        expected += ["right" if identities[j] == samples[i].target_id else "wrong" for j in best]
    assert page.items[: len(expected)] == expected
    assert "right" in page.items and "wrong" in page.items
    assert sum("✓" in text for text in page.text) == page.items.count("right")


def test_a_report_on_candidates_ranks_each_query_among_its_own(run, export, candidate_shards, tmp_path):
    metrics = write_report(run, export, candidate_shards, tmp_path / "report.html", SETTINGS)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    rows = metric_rows(metrics, DIRECTIONS[0])
    assert [table[0] for table in page.tables if table[0][0] == "score"] == [
        ["score", "precision@1", "recall@1", "recall@5", "recall@10", "mrr", "ndcg@10"]
    ]
    assert page.tables[0][4][1:] == [f"{value:.3f}" for value in rows["fused"].values()]
    records = [record for _, record in ShardedDataset(candidate_shards).records() if record.query is not None]
    sizes = [len(record.candidates) for record in records]
    assert [text.split(" of ")[1] for text in page.text if text.startswith("Right item")] == [
        str(size) for size in sizes
    ]
    first = itertools.accumulate((min(5, size) for size in sizes[:-1]), initial=0)
    assert sum(page.items[index] == "right" for index in first) / len(sizes) == pytest.approx(
        metrics["query_to_target/fused/precision@1"]
    )


def test_texts_of_data_and_run_are_escaped(report):
    _, page = report
    assert "b" not in page.tags and "run" not in page.tags
    assert any("<b>query</b> 0" in text for text in page.text)
    assert any("a <run>" in text for text in page.text)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["FUSED/recall@1", "FUSED/recall@10"], "FUSED/recall@10"),
        (["FUSED/recall@10", "FUSED/precision@1"], "FUSED/precision@1"),
        (["GQA/FUSED/precision@1", "averages/Overall/FUSED/precision@1"], "averages/Overall/FUSED/precision@1"),
        (["a/FUSED/recall@10", "averages/All data sets/FUSED/recall@10"], "averages/All data sets/FUSED/recall@10"),
        (["loss"], None),
    ],
)
def test_the_curve_of_evaluations_is_that_of_the_single_data_set_or_of_the_average(names, chosen):
    recorded = {f"evaluation/{name}".replace("FUSED", "query_to_target/fused"): 0.5 for name in names}
    found = evaluation_curve([{"step": 1, "loss": 1.0}, {"step": 2, **recorded}])
    assert [name.replace("query_to_target/fused", "FUSED") for name, *_ in found] == (
        [f"evaluation/{chosen}"] if chosen else []
    )


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_directory_that_is_no_run_is_refused(run, export, shards, tmp_path, missing):
    for name in {"config.yaml", "metrics.jsonl"} - {missing}:
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(UserError, match=f"not a run directory: it has no {missing}"):
        write_report(tmp_path, export, shards, tmp_path / "report.html", SETTINGS)


def test_damaged_metrics_are_refused_by_line(run, export, shards, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl line 2"):
        write_report(tmp_path, export, shards, tmp_path / "report.html", SETTINGS)
    assert not (tmp_path / "report.html").exists()


def recorded(export: Path, folder: Path, run: Path, step: int = STEPS, **changes) -> Path:
    """The export, with the record that the converter would have left."""
    shutil.copytree(export, folder)
    config = load_config(run / "config.yaml").model_dump(mode="json")
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    # The converter sets these itself.
    for key in ("gradient_checkpointing", "cache_vision", "trust_remote_code"):
        config["model"][key] = not config["model"][key]
    (folder / "pdfx_export.json").write_text(
        json.dumps({"pdfx": "0", "step": step, "config": config}), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train__output_dir": "elsewhere", "train__learning_rate": 0.5},
            "train.learning_rate is 0.5 there and 0.001 in the run; train.output_dir is",
        ),
        ({"model__paths": 7}, "model.paths is 7 there"),
        ({"inputs__query_instruction": "Find: "}, "inputs.query_instruction is 'Find: '"),
        ({"step": STEPS + 1}, f"step {STEPS + 1}, and .* has only reached step {STEPS}"),
    ],
)
def test_a_model_of_another_run_is_refused(run, export, shards, tmp_path, changes, sentence):
    model = recorded(export, tmp_path / "model", run, **changes)
    with pytest.raises(UserError, match=f"{sentence}.*Give the model that 'pdfx convert"):
        write_report(run, model, shards, tmp_path / "report.html", SETTINGS)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"train__output_dir": "moved"}, "train.output_dir is 'moved'"),
        ({"train__max_steps": 99, "model__path": "x"}, "model.path is 'x' there"),
    ],
)
def test_a_run_that_went_on_or_was_moved_keeps_its_model_and_changes_are_told(run, export, tmp_path, changes, said):
    words, notes = origin_of(
        recorded(export, tmp_path / "model", run, **changes), run, load_config(run / "config.yaml"), STEPS
    )
    assert words.endswith(f"step {STEPS}") and len(notes) == (said is not None) and all(said in note for note in notes)


def test_a_model_without_a_record_is_told(run, export, shards, tmp_path):
    said = []
    write_report(run, export, shards, tmp_path / "report.html", SETTINGS, say=said.append)
    assert (
        len(said) == 1
        and "so whether it was made from" in said[0]
        and "so whether it was made from" in (tmp_path / "report.html").read_text()
    )
