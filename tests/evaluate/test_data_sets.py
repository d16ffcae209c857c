import io
import re

import pytest
from rich.console import Console

from pdfx.errors import UserError
from pdfx.evaluate.data_sets import averages, flattened, open_data_sets, report_of
from pdfx.evaluate.tables import notes, result_tables

SCORES = ("path_0", "fused", "chance")


def measured(
    value: float, names: tuple[str, ...], directions: tuple[str, ...] = ("query_to_target",)
) -> dict[str, float]:
    """Metrics that differ by score and name, so that a mix-up shows."""
    keys = [f"{direction}/{score}/{name}" for direction in directions for score in SCORES for name in names]
    counts = {"queries": 3.0, "targets": 4.0, "relevant_targets": 1.5, "relevant_queries": 1.0}
    return {**{key: value + place / 1000 for place, key in enumerate(keys)}, "path_cosine": 0.5, **counts}


MMEB_NAMES = ("precision@1", "recall@1", "recall@10")
RESULTS = {
    "RefCOCO": measured(0.2, MMEB_NAMES),
    "mine": measured(0.4, ("recall@1", "recall@10"), ("query_to_target", "target_to_query")),
    "GQA": measured(0.6, MMEB_NAMES),
}


def printed(results) -> list[tuple[str, list[list[str]]]]:
    """Title, and cells of each row, of every table."""
    console = Console(width=200, record=True, file=io.StringIO())
    tables = []
    for table in result_tables(results):
        console.print(table)
        lines = console.export_text(clear=True).splitlines()
        tables.append(
            (
                lines[0].strip(),
                [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if re.match("[│┃]", line)],
            )
        )
    return tables


def test_there_is_one_table_per_metric_with_a_row_per_data_set_that_has_it():
    tables = dict(printed(RESULTS))
    assert list(tables) == [
        "precision@1, query → target",
        "recall@10, query → target",
        "recall@1, query → target",
        "recall@1, target → query",
        "recall@10, target → query",
    ]
    head, *rows = tables["precision@1, query → target"]
    assert head == ["data set", "path 0", "fused", "chance"]
    assert rows[:2] == [["GQA", "0.600", "0.603", "0.606"], ["RefCOCO", "0.200", "0.203", "0.206"]]
    assert rows[2:] == [
        ["VQA (1 of 10)", "0.600", "0.603", "0.606"],
        ["Visual grounding (1 of 4)", "0.200", "0.203", "0.206"],
        ["OOD (2 of 16)", "0.400", "0.403", "0.406"],
        ["Overall (2 of 36)", "0.400", "0.403", "0.406"],
    ]
    assert [row[0] for row in tables["recall@10, query → target"]][-1] == "All data sets (3)"
    assert [row[0] for row in tables["recall@1, target → query"]] == ["data set", "mine"]


def test_what_is_missing_of_mmeb_is_named_where_some_of_it_is_there():
    *_, sentence = notes(RESULTS)
    assert sentence.startswith("34 of MMEB's 36 data sets are missing") and "ImageNet-1K, N24News" in sentence
    assert not re.search(r"\bGQA\b|\bRefCOCO,", sentence)
    assert notes({"mine": RESULTS["mine"]}) == []


def test_the_report_of_several_holds_everything_and_of_one_is_its_metrics():
    report = report_of(RESULTS)
    assert report["data_sets"] == RESULTS
    assert len(report["mmeb_missing"]) == 34
    assert report["averages"]["OOD"] == {"data_sets": 2, "of": 16, **averages(RESULTS)[2].metrics}
    assert report_of({"mine": RESULTS["mine"]}) == RESULTS["mine"]


def test_flattened_metrics_keep_their_names_where_there_is_one_data_set():
    assert flattened({"mine": RESULTS["mine"]}) == RESULTS["mine"]
    flat = flattened(RESULTS)
    assert flat["GQA/query_to_target/fused/precision@1"] == RESULTS["GQA"]["query_to_target/fused/precision@1"]
    assert flat["averages/Overall/query_to_target/fused/precision@1"] == pytest.approx(0.403)
    assert flat["averages/All data sets/query_to_target/path_0/recall@10"] == pytest.approx((0.202 + 0.401 + 0.602) / 3)


def test_data_sets_are_named_by_as_much_of_their_paths_as_tells_them_apart(shards, candidate_shards):
    assert list(open_data_sets([shards])) == ["shards"]
    assert list(open_data_sets([f"{shards}/", candidate_shards])) == [
        f"{path.parent.name}/shards" for path in (shards, candidate_shards)
    ]


def test_a_directory_given_twice_is_refused(shards):
    with pytest.raises(UserError, match="given twice"):
        open_data_sets([shards, f"{shards}/"])
