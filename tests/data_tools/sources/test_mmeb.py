from collections import Counter

import pytest
from source_checks import check_source, problems_of
from tiny_formats import MMEB_LABELS, write_jsonl, write_mmeb_eval, write_mmeb_train

from data_tools.sources.base import Source
from data_tools.sources.mmeb import MmebSource
from pdfx.data.schema import Record
from pdfx.errors import UserError

TRAINING_ROW = {
    "qry": "<|image_1|> Find it",
    "qry_image_path": "a.png",
    "pos_text": "it",
    "pos_image_path": "",
    "neg_text": "",
    "neg_image_path": "",
}
EVALUATION_ROW = {"qry_text": "which?", "qry_img_path": "", "tgt_text": ["right", "wrong"], "tgt_img_path": ["", ""]}


def records_of(source: Source) -> list[Record]:
    found = list(source.records())
    assert all(record.problem is None for record in found), [record.problem for record in found]
    return [record.record for record in found]


@pytest.mark.parametrize("as_parquet", [True, False])
def test_a_training_row_is_a_query_its_target_and_the_negative_that_it_has(tmp_path, as_parquet):
    source = MmebSource(write_mmeb_train(tmp_path, 3, as_parquet), split="original")
    records = [source.record for source in check_source(source, 3, 0)]
    assert source.total() == 3
    assert records[0].query.text == "Represent the given image for classification"
    assert [record.query.images for record in records] == [[f"images/{i}.png"] for i in range(3)]
    assert [record.target.text for record in records] == list(MMEB_LABELS[:3])
    assert [[negative.text for negative in record.negatives] for record in records] == [[], [MMEB_LABELS[2]], []]
    # The builder names targets by their content, so that two pictures of one label are no negatives of one another.
    assert all(record.target_id is None and record.candidates is None for record in records)


def test_the_splits_of_a_training_set_are_not_mixed(tmp_path):
    folder = write_mmeb_train(tmp_path, 2)
    assert {record.query.text for record in records_of(MmebSource(folder, split="diverse_instruction"))} == {
        "Represent the image."
    }
    with pytest.raises(
        UserError,
        match="holds the splits diverse_instruction, original; say which one is wanted, as in "
        "split=diverse_instruction",
    ):
        MmebSource(folder)
    with pytest.raises(UserError, match="no split 'test'.*there are diverse_instruction, original"):
        MmebSource(folder, split="test")


def test_queries_of_an_evaluation_share_one_record_per_candidate(tmp_path):
    classification, grounding = write_mmeb_eval(tmp_path, 6)
    records = records_of(MmebSource(classification))
    # Six queries over four labels, each label the target of some query: no record is needed for the labels alone.
    assert len(records) == 6 and all(record.query is not None for record in records)
    assert [record.target.text for record in records] == [MMEB_LABELS[i % 4] for i in range(6)]
    assert len({record.target_id for record in records}) == 4
    assert {frozenset(record.candidates) for record in records} == {frozenset(record.target_id for record in records)}
    assert all(record.candidates[0] == record.target_id for record in records)

    records = records_of(MmebSource(grounding))
    asking, alone = records[:6], records[6:]
    assert [record.query is None for record in alone] == [True, True]
    assert [record.target.images for record in alone] == [[f"images/{i}.png"] for i in (6, 7)]
    assert alone[0].target.text == 'Represent the given cropped image of the object: "thing 6"'
    assert asking[2].query.text == 'Select the portion of the image that follows the language expressions: "thing 2"'
    by_identity = {record.target_id: record.target.images[0] for record in records}
    assert [by_identity[identity].split("/")[-1] for identity in asking[2].candidates] == ["2.png", "3.png", "6.png"]
    # Every candidate is the target of some record, and of one without a query only where no query asks for it.
    assert {identity for record in asking for identity in record.candidates} == set(by_identity)
    assert max(Counter(record.target_id for record in records).values()) == 1


def test_a_candidate_is_known_by_text_and_image_and_counts_once_in_a_list(tmp_path):
    rows = [
        {**EVALUATION_ROW, "tgt_text": ["a", "a", "b", "a"], "tgt_img_path": ["1.png", "2.png", "1.png", "1.png"]},
        {**EVALUATION_ROW, "tgt_text": ["a", "b"], "tgt_img_path": ["2.png", "1.png"]},
    ]
    first, second, alone = records_of(MmebSource(write_jsonl(tmp_path / "test.jsonl", rows)))
    assert len(first.candidates) == 3
    assert second.candidates == [first.candidates[1], first.candidates[2]]
    assert (alone.target.text, alone.target.images, alone.target_id) == ("b", ["1.png"], first.candidates[2])


def test_instructions_that_stand_apart_are_put_before_the_texts(tmp_path):
    row = {
        **EVALUATION_ROW,
        "qry_inst": "<|image_1|> Answer:",
        "qry_img_path": "q.png",
        "tgt_inst": "Represent it:",
        "tgt_text": ["yes", ""],
    }
    record, alone = records_of(
        MmebSource(write_jsonl(tmp_path / "test.jsonl", [{**row, "tgt_img_path": ["", "c.png"]}]))
    )
    assert (record.query.text, record.target.text, alone.target.text) == (
        "Answer: which?",
        "Represent it: yes",
        "Represent it:",
    )


def test_a_build_that_was_stopped_goes_on_by_number(tmp_path):
    classification, grounding = write_mmeb_eval(tmp_path, 5)
    check_source(MmebSource(classification), 5, 0)
    check_source(MmebSource(grounding), 5 + 2, 0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**TRAINING_ROW, "qry_image_path": ""}, "'qry' marks the place of an image, and 'qry_image_path' is empty"),
        ({**TRAINING_ROW, "pos_text": ""}, "'pos_text', 'pos_image_path' holds neither a text nor a picture"),
        ({**TRAINING_ROW, "pos_text": 5}, "'pos_text' is 5: it must be a text"),
        (
            {**TRAINING_ROW, "neg_text": "<|image_1|> not it"},
            "'neg_text' marks the place of an image, and 'neg_image_path' is empty",
        ),
        ({**EVALUATION_ROW, "tgt_text": [], "tgt_img_path": []}, "'tgt_text' is empty: the query has no candidates"),
        (
            {**EVALUATION_ROW, "tgt_text": ["a", "b", "c"]},
            "'tgt_text' has 3 texts and 'tgt_img_path' 2 paths; there must be as many of each",
        ),
        (
            {**EVALUATION_ROW, "tgt_text": ["a", ""]},
            "of candidate 2, 'tgt_text', 'tgt_img_path' holds neither a text nor a picture",
        ),
        (
            {**EVALUATION_ROW, "tgt_img_path": ["", 7]},
            "of candidate 2, 'tgt_img_path' is 7: it must be the path of an image",
        ),
        ({**EVALUATION_ROW, "qry_text": ""}, "'qry_text', 'qry_img_path' holds neither a text nor a picture"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_reason_and_the_others_stay(tmp_path, row, problem):
    good = TRAINING_ROW if "qry" in row else EVALUATION_ROW
    source = MmebSource(write_jsonl(tmp_path / "rows.jsonl", [good, row, good]))
    found = check_source(source, 4 if source.is_evaluation else 3, 1)
    assert problem in problems_of(found)[0]
    assert found[1].problem and found[1].origin.endswith("rows.jsonl line 2")


def test_what_is_no_data_set_of_mmeb_is_refused_with_what_it_should_be(tmp_path):
    with pytest.raises(UserError, match="is not a data set of MMEB: it has the columns 'anchor'"):
        MmebSource(write_jsonl(tmp_path / "rows.jsonl", [{"anchor": "a"}]))
    write_mmeb_eval(tmp_path / "all", 2)
    with pytest.raises(
        UserError,
        match="holds 2 data sets of MMEB .RefCOCO-Matching, VOC2007.; build each by itself, as in .*RefCOCO-Matching",
    ):
        MmebSource(tmp_path / "all")
