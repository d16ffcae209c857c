import pytest
from source_checks import check_source, problems_of
from tiny_formats import write_jsonl, write_parquet
from tiny_shards import picture

from data_tools.sources.table import TableSource
from pdfx.errors import UserError

PAIRS = {"query.text": "caption", "target.images": "image"}


def test_pictures_are_paths_bytes_structs_or_lists_of_them(tmp_path):
    struct = {"bytes": picture(1), "path": "b.png"}
    cells = {
        "path": "a.png",
        "bytes": picture(0),
        "struct": struct,
        "named": {"bytes": None, "path": "c.png"},
        "paths": ["a.png", "b.png"],
        "structs": [struct, {"bytes": picture(2), "path": None}],
    }
    expected = {
        "path": ["a.png"],
        "bytes": [picture(0)],
        "struct": [picture(1)],
        "named": ["c.png"],
        "paths": ["a.png", "b.png"],
        "structs": [picture(1), picture(2)],
    }
    path = write_parquet(tmp_path / "a.parquet", [{"caption": "a cat", **cells}] * 4)
    for column, pictures in expected.items():
        for source in check_source(TableSource(path, **PAIRS | {"target.images": column}), 4, 0):
            assert source.record.query.text == "a cat"
            assert [source.pictures.get(name, name) for name in source.record.target.images] == pictures


def test_csv_and_jsonl_give_the_same_records(tmp_path):
    (tmp_path / "a.csv").write_text("id,caption,image,other\n1,a cat,cats/1.png,x\n2,a dog,dogs/1.png,y\n")
    lines = [{"id": 1, "caption": "a cat", "image": "cats/1.png"}, {"id": 2, "caption": "a dog", "image": "dogs/1.png"}]
    write_jsonl(tmp_path / "a.jsonl", lines)
    options = PAIRS | {"target_id": "id", "key": "id"}
    one, other = (check_source(TableSource(tmp_path / name, **options), 2, 0) for name in ("a.csv", "a.jsonl"))
    assert [source.record for source in one] == [source.record for source in other]
    assert (one[1].record.key, one[1].record.target_id, one[1].record.target.images) == ("2", "2", ["dogs/1.png"])


def test_several_columns_make_one_part_and_empty_cells_add_nothing(tmp_path):
    row = {"title": "Title", "body": "Body", "front": "a.png", "back": None, "n1": "no", "n2": "", "many": ["x", "y"]}
    path = write_jsonl(
        tmp_path / "a.jsonl", [row, row | {"title": None, "back": "b.png", "n2": "nor this", "many": []}]
    )
    options = {"query.text": "title, body", "target.images": "front,back", "negatives.text": "n1,n2,many"}
    first, second = (source.record for source in check_source(TableSource(path, **options), 2, 0))
    assert (first.query.text, first.target.images, [side.text for side in first.negatives]) == (
        "Title\nBody",
        ["a.png"],
        ["no", "x", "y"],
    )
    assert (second.query.text, second.target.images, [side.text for side in second.negatives]) == (
        "Body",
        ["a.png", "b.png"],
        ["no", "nor this"],
    )


def test_negatives_have_texts_and_pictures_in_pairs(tmp_path):
    row = {"q": "q", "t": "t", "texts": ["one", "", None], "images": [None, "b.png", None]}
    options = {"query.text": "q", "target.text": "t", "negatives.text": "texts", "negatives.images": "images"}
    bad, pictures = row | {"texts": ["one"]}, row | {"texts": None, "images": [["a.png", "b.png"], "c.png"]}
    first, *rest = check_source(TableSource(write_jsonl(tmp_path / "a.jsonl", [row, bad, pictures]), **options), 3, 2)
    assert [(side.text, side.images) for side in first.record.negatives] == [("one", []), ("", ["b.png"])]
    assert problems_of(rest) == [
        f"there are 1 texts and {n} pictures of negatives; there must be as many of each, empty ones included"
        for n in (3, 2)
    ]
    alone = TableSource(
        tmp_path / "a.jsonl", **{name: column for name, column in options.items() if name != "negatives.text"}
    )
    assert [side.images for side in list(alone.records())[2].record.negatives] == [["a.png", "b.png"], ["c.png"]]


def test_candidates_are_lists_of_identities(tmp_path):
    rows = [
        {"q": "q", "t": "t", "id": 1, "among": [1, "x"]},
        {"q": "q", "t": "t", "id": None, "among": None},
        {"q": "q", "t": "t", "among": "1,2"},
    ]
    options = {"query.text": "q", "target.text": "t", "target_id": "id", "candidates": "among"}
    first, second, third = check_source(TableSource(write_jsonl(tmp_path / "a.jsonl", rows), **options), 3, 1)
    assert (
        first.record.candidates == ["1", "x"] and second.record.candidates is None and second.record.target_id is None
    )
    assert third.problem == "'among' is '1,2': it must be a list"


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"caption": None}, "'caption' holds neither a text nor a picture"),
        ({"caption": 5}, "'caption' is 5: it must be a text"),
        ({"caption": ["a"]}, "'caption' is ['a']: it must be a text"),
        ({"image": None}, "'image' holds neither a text nor a picture"),
        ({"image": []}, "'image' holds neither a text nor a picture"),
        ({"image": 7}, "'image' is 7: it must be the path of a picture, or its bytes"),
        ({"image": [0, 255]}, "'image' is 0: it must be the path of a picture, or its bytes"),
        ({"image": {"url": "x"}}, "'image' is {'url': 'x'}: it must be the path of a picture, or its bytes"),
        ({"image": {"path": None, "bytes": None}}, "'image' holds neither the bytes nor the path of a picture"),
        (
            {"image": "https://a.b/c.png"},
            "'image' is 'https://a.b/c.png': pictures are not downloaded; fetch it and give the path of the file",
        ),
        (
            {"image": "data:image/png,raw"},
            "'image' is 'data:image/png,raw': of data addresses only those in base64 can be read",
        ),
        ({"key": "a.b"}, "'key' is 'a.b': a key is 1 to 64 letters"),
        ({"key": True}, "'key' is True: it must be a name or a whole number"),
        ({"id": 1.5}, "'id' is 1.5: it must be a name or a whole number"),
    ],
)
def test_a_malformed_row_is_a_problem_that_names_the_column(tmp_path, row, problem):
    good = {"caption": "a cat", "image": "a.png", "key": None, "id": None}
    source = TableSource(
        write_jsonl(tmp_path / "a.jsonl", [good, good | row, good]), **PAIRS, key="key", target_id="id"
    )
    (found,) = problems_of(check_source(source, 3, 1))
    assert problem in found


def test_columns_that_are_not_there_or_not_named_are_told_with_those_that_are(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"caption": "a", "image": "b"}])
    message = (
        r"There is no column 'captoin' in .*a\.parquet, which query\.text=captoin names\. Did you mean "
        r"'caption'\? There are: 'caption', 'image'\."
    )
    with pytest.raises(UserError, match=message):
        TableSource(path, **PAIRS | {"query.text": "captoin"})
    with pytest.raises(
        UserError, match=r"Which columns of .*a\.parquet hold the target is not said; say it as in target\.text=COLUMN"
    ):
        TableSource(path, **{"query.text": "caption"})


def test_the_identity_changes_with_files_and_options(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"caption": "a", "image": "b"}])
    options = (PAIRS, {"query.images": "image", "target.text": "caption"}, PAIRS | {"key": "caption"})
    identities = [TableSource(path, **given).identity() for given in options]
    write_jsonl(path, [{"caption": "a longer one", "image": "b"}])
    identities.append(TableSource(path, **PAIRS).identity())
    assert len({str(identity) for identity in identities}) == 4
