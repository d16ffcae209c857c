"""The page of a study, from records of known ranks."""

import re

import numpy as np
import pytest

from pdfx.study.plan import StudySection
from pdfx.study.records import Record
from pdfx.study.results import write_page

ROWS = {"base": {"about": "the baseline"}, "more": {}, "none": {}}


def record(row: str, seed: int, shift: int) -> Record:
    """40 items, of which every fourth is found first, or ``shift`` more of four."""
    ranks = np.array([1 if i % 4 <= shift else 4 for i in range(40)], dtype=np.uint16)
    parts = dict.fromkeys(("path_0", "path_1", "fused"), ranks)
    ways = ("query_to_target", "target_to_query")
    arrays = {f"{test}/{way}/{name}": own for test in "ab" for way in ways for name, own in parts.items()}
    items = {f"{test}/{way}/items": np.arange(40, dtype=np.uint16) for test in "ab" for way in ways}
    paths = {"a": {"path_r2": 0.5 + seed / 10}, "b": {"path_r2": 0.7 + seed / 10}} if row == "more" else {}
    costs = {"steps": 10 * (shift + 1), "flops": 100.0 * (shift + 1), "seconds": 3.0}
    return Record({"row": row, "seed": seed, "settings": "x", **costs, "paths": paths}, {**arrays, **items})


@pytest.fixture
def study(tmp_path) -> StudySection:
    for seed in (1, 2):
        for row, shift in (("base", 0), ("more", 1)):
            record(row, seed, shift).write(tmp_path / "records", f"{row}-seed{seed}")
    tree = {"recipe": "recipe.yaml", "out": str(tmp_path), "seeds": [1, 2], "rows": ROWS, "baselines": ["base"]}
    return StudySection.model_validate({**tree, "bootstraps": 500, "title": "A study", "discussion": "One.\n\nTwo."})


def test_the_page_holds_what_the_records_say(tmp_path, study):
    page = tmp_path / "pages" / "results.md"
    write_page([(tmp_path / "first.yaml", study)], page)
    text = page.read_text()
    assert "4 of 6 runs are made (3 rows with 2 seeds each are planned)." in text
    # A quarter of the items at rank 1 and the others at 4 give .4375; a half .625. Base costs half of more.
    assert "| `base`: the baseline | 10 | 1.00 | 1.00 | 0.438 | 0.438 | 0.438 | 0.438 | – | 2 |" in text
    assert "| `more` | 20 | 2.00 | 1.00 | 0.625 | 0.625 | 0.625 | 0.625 | 0.75 | 2 |" in text
    difference = text.partition("less `base`")[2]
    # The items' standard deviation of .75 in a quarter of them, over the root of 40.
    error = 0.75 * np.sqrt(0.25 * 0.75 / 40)
    written = re.search(r"`more` \| \*\*\+0.188 ± (0.\d+)\*\*", difference)
    assert float(written[1]) == pytest.approx(error, rel=0.15)
    assert text.rstrip().endswith("One.\n\nTwo.")
    html = page.with_suffix(".html").read_text()
    assert "<strong>+0.188" in html and "<p>Two.</p>" in html and html.count("<figure>") == 1
    assert page.with_name("results-first.svg").is_file()


def test_a_study_without_records_has_a_page_too(tmp_path, study):
    write_page(
        [(tmp_path / "first.yaml", study.model_copy(update={"records": str(tmp_path / "none")}))], tmp_path / "r.md"
    )
    assert "0 of 6 runs are made" in (tmp_path / "r.md").read_text()


def test_the_trade_off_is_drawn_if_two_rows_have_paths(tmp_path, study):
    again = record("more", 1, 2)
    again.write(study.record_folder, "none-seed1")
    write_page([(tmp_path / "first.yaml", study)], tmp_path / "r.md")
    assert b"<svg" in (tmp_path / "r-first-paths.svg").read_bytes()
    assert "r-first-paths.svg" in (tmp_path / "r.md").read_text()
