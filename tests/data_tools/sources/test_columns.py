import pytest
from source_checks import check_source, problems_of
from tiny_formats import write_jsonl, write_parquet
from tiny_shards import picture

from data_tools.sources.table import ColumnsSource
from pdfx.errors import UserError


def texts_of(source: ColumnsSource) -> list[tuple]:
    return [
        (read.record.query.text, read.record.target.text, *(side.text for side in read.record.negatives))
        for read in source.records()
        if read.record
    ]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"anchor": "a", "positive": "p"}, ("a", "p")),
        ({"anchor": "a", "positive": "p", "negative": "n"}, ("a", "p", "n")),
        ({"anchor": "a", "positive": "p", "negative_1": "n1", "negative_2": "n2"}, ("a", "p", "n1", "n2")),
        ({"negative": "n", "positive": "p", "anchor": "a"}, ("a", "p", "n")),
        ({"query": "q", "answer": "w"}, ("q", "w")),
        (
            {"sentence2": "the names do not matter", "sentence1": "order does"},
            ("the names do not matter", "order does"),
        ),
        ({"question": "q", "answer": "w", "hard_negative_1": "n"}, ("q", "w", "n")),
        ({"anchor": "a", "positive": "p", "negatives": ["n1", None, "n2"]}, ("a", "p", "n1", "n2")),
        ({"anchor": "a", "positive": "p", "negative": None}, ("a", "p")),
    ],
)
def test_columns_are_taken_as_sentence_transformers_takes_them(tmp_path, row, expected):
    path = write_parquet(tmp_path / "a.parquet", [row] * 2)
    check_source(ColumnsSource(path), 2, 0)
    assert texts_of(ColumnsSource(path)) == [expected] * 2


def test_csv_columns_can_be_named_in_another_order(tmp_path):
    (tmp_path / "a.csv").write_text("id,good,bad,question\n1,yes,no,is it?\n2,no,,isn't it?\n")
    source = ColumnsSource(tmp_path / "a.csv", columns="question,good,bad")
    check_source(source, 2, 0)
    assert texts_of(source) == [("is it?", "yes", "no"), ("isn't it?", "no")]


def test_only_so_many_negatives_are_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "p", "negative_1": "x", "negative_2": "y"}])
    assert texts_of(ColumnsSource(path, negatives=1)) == [("a", "p", "x")] and texts_of(
        ColumnsSource(path, negatives=0)
    ) == [("a", "p")]


def test_cells_are_texts_pictures_or_both(tmp_path):
    struct = {"bytes": picture(0), "path": "a.png"}
    row = {
        "anchor": {"text": "find", "image": struct},
        "positive": struct,
        "negative_1": "not.png",
        "negative_2": "a text",
    }
    (source,) = check_source(ColumnsSource(write_parquet(tmp_path / "a.parquet", [row]), images="negative_1"), 1, 0)
    record = source.record
    assert (
        record.query.text == "find"
        and [source.pictures[name] for name in record.query.images + record.target.images] == [picture(0)] * 2
    )
    assert [(side.text, side.images) for side in record.negatives] == [("", ["not.png"]), ("a text", [])]


def test_labels_decide_which_rows_are_positive_pairs(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"sentence1": "a", "sentence2": "b", "score": score} for score in (0.9, 0.75, 0.1, None, "x")],
    )
    with pytest.raises(
        UserError,
        match=r"has the labels 'score', so not every row need be a positive pair; .* min_label=0\.75, .* label=none",
    ):
        ColumnsSource(path)
    assert problems_of(check_source(ColumnsSource(path, min_label=0.75), 5, 3)) == [
        "'score' is 0.1, below min_label=0.75, so it is not a positive pair",
        "'score' is None: it must be a number",
        "'score' is 'x': it must be a number",
    ]
    check_source(ColumnsSource(path, label="none"), 5, 0)
    own = write_jsonl(tmp_path / "b.jsonl", [{"sentence1": "a", "sentence2": "b", "same": same} for same in (1, 0)])
    check_source(ColumnsSource(own, label="same", min_label=1), 2, 1)


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"anchor": ""}, "'anchor' holds neither a text nor a picture"),
        ({"positive": None}, "'positive' holds neither a text nor a picture"),
        ({"anchor": 5}, "'anchor' is 5: it must be a text or a picture"),
        ({"positive": ["p", "q"]}, "'positive' is a list of 2; only a column of negatives may hold several"),
        ({"positive": {"bytes": None, "path": None}}, "'positive' holds neither the bytes nor the path of a picture"),
        ({"positive": {"text": 5}}, "'positive.text' is 5: it must be a text"),
        ({"negative": [5]}, "'negative' is 5: it must be a text or a picture"),
    ],
)
def test_a_malformed_row_is_a_problem_that_names_the_column(tmp_path, row, problem):
    good = {"anchor": "a", "positive": "p", "negative": "n"}
    (found,) = problems_of(
        check_source(ColumnsSource(write_jsonl(tmp_path / "a.jsonl", [good, good | row, good])), 3, 1)
    )
    assert problem in found


@pytest.mark.parametrize(
    "names", [["text"], ["anchor", "positive", "id"], ["question", "answer", "source"], ["id", "anchor", "positive"]]
)
def test_columns_that_could_mean_anything_are_not_guessed(tmp_path, names):
    path = write_jsonl(tmp_path / "a.jsonl", [dict.fromkeys(names, "x")])
    with pytest.raises(
        UserError, match="is not clear; name them in this order, as in columns=question,answer,negative_1"
    ):
        ColumnsSource(path)


def test_the_identity_changes_with_files_and_options(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "p"}])
    options = [{}, {"columns": "positive,anchor"}, {"images": "positive"}, {"label": "none"}, {"negatives": 1}]
    identities = [ColumnsSource(path, **given).identity() for given in options]
    write_jsonl(path, [{"anchor": "aa", "positive": "p"}])
    identities.append(ColumnsSource(path).identity())
    assert len({str(identity) for identity in identities}) == 6
