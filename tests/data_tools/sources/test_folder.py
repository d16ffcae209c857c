import os

import pytest
from source_checks import check_source, problems_of
from tiny_formats import write_jsonl, write_parquet
from tiny_shards import picture

from data_tools.sources.folder import FolderSource
from data_tools.sources.registry import open_source
from pdfx.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Three pictures with captions, one of them with two lines, in two folders."""
    for number, (name, caption) in enumerate({"b": "a boat", "a": "an apple\n\nred fruit\n", "sub/c": "a cat"}.items()):
        path = tmp_path / "pairs" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
        path.with_suffix(".txt").write_text(caption)
    return tmp_path / "pairs"


def pairs_of(source: FolderSource) -> list[tuple]:
    return [(read.record.query.text, read.record.target.images[0]) for read in source.records() if read.record]


def test_captions_beside_pictures_are_read_in_the_order_of_names(folder):
    check_source(FolderSource(folder), 3, 0)
    assert pairs_of(FolderSource(folder)) == [
        ("an apple\n\nred fruit", "a.png"),
        ("a boat", "b.png"),
        ("a cat", "sub/c.png"),
    ]


def test_each_line_can_be_a_caption_of_its_own(folder):
    check_source(FolderSource(folder, captions="lines"), 4, 0)
    assert pairs_of(FolderSource(folder, captions="lines"))[:2] == [("an apple", "a.png"), ("red fruit", "a.png")]


def test_where_the_caption_is_the_target_those_of_one_picture_share_its_identity(folder):
    records = [read.record for read in check_source(FolderSource(folder, query="image", captions="lines"), 4, 0)]
    assert [(record.query.images, record.target.text, record.target_id) for record in records] == [
        (["a.png"], "an apple", "a.png"),
        (["a.png"], "red fruit", "a.png"),
        (["b.png"], "a boat", None),
        (["sub/c.png"], "a cat", None),
    ]


def test_pictures_and_captions_without_one_another_are_problems(folder):
    (folder / "lonely.JPG").write_bytes(picture(4))
    (folder / "sub" / "d.txt").write_text("a dog")
    (folder / ".hidden.png").write_bytes(picture(4))
    (folder / "notes.md").write_text("neither picture nor caption")
    for name, caption in {"empty": b" \n", "latin": b"caf\xe9", "huge": b"x" * (1 << 21)}.items():
        (folder / f"{name}.png").write_bytes(picture(5))
        (folder / f"{name}.txt").write_bytes(caption)
    for captions in ("file", "lines"):
        records = check_source(FolderSource(folder, captions=captions), 8 if captions == "file" else 9, 5)
        assert problems_of(records) == [
            "the text file empty.txt is empty",
            "the text file huge.txt has more than 1 MiB",
            "the text file latin.txt is not valid UTF-8 (byte 3)",
            "there is no text file lonely.txt beside the picture",
            "there is no picture of the same name beside the text file",
        ]
        assert records[-1].origin == str(folder / "sub" / "d.txt")


def test_metadata_files_of_hugging_face_decide_where_there_are_any(folder):
    rows = [
        {"file_name": "b.png", "text": "boat"},
        {"file_name": "sub/c.png", "text": "cat"},
        {"file_name": "a.png", "text": None},
    ]
    write_jsonl(folder / "metadata.jsonl", rows)
    (folder / "sub" / "metadata.csv").write_text("file_name,caption,label\nc.png,the cat,1\n,nothing,2\n")
    records = check_source(FolderSource(folder), 5, 2)
    assert pairs_of(FolderSource(folder)) == [("boat", "b.png"), ("cat", "sub/c.png"), ("the cat", "sub/c.png")]
    assert problems_of(records) == ["'text' is empty: the picture a.png has no caption", "'file_name' is empty"]


def test_lists_of_captions_give_a_record_each(folder):
    rows = [
        {"file_name": "a.png", "captions": ["one", "two"]},
        {"file_name": "b.png", "captions": ["three"]},
        {"file_name": "sub/c.png", "captions": []},
    ]
    write_parquet(folder / "metadata.parquet", rows)
    assert problems_of(check_source(FolderSource(folder), 4, 1)) == [
        "'captions' is empty: the picture sub/c.png has no caption"
    ]
    assert pairs_of(FolderSource(folder)) == [("one", "a.png"), ("two", "a.png"), ("three", "b.png")]
    assert [read.record and read.record.target_id for read in FolderSource(folder, query="image").records()] == [
        "a.png",
        "a.png",
        None,
        None,
    ]


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"file_name": None}, "'file_name' is empty"),
        ({"file_name": 5}, "'file_name' is 5: it must be a text"),
        ({"text": " "}, "'text' is empty: the picture a.png has no caption"),
        ({"text": {"en": "an apple"}}, "'text' is {'en': 'an apple'}: it must be a text"),
    ],
)
def test_a_malformed_row_of_metadata_is_a_problem(folder, row, problem):
    good = {"file_name": "a.png", "text": "an apple"}
    write_jsonl(folder / "metadata.jsonl", [good, good | row, good])
    assert problems_of(check_source(FolderSource(folder), 3, 1)) == [problem]


def test_a_column_of_captions_that_is_not_clear_must_be_named(folder):
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "caption": "short", "text": "long"}])
    with pytest.raises(
        UserError,
        match=r"Which column of .*metadata\.jsonl holds the captions is not clear; .* There are: 'caption', 'text'",
    ):
        FolderSource(folder)
    assert pairs_of(FolderSource(folder, text="caption")) == [("short", "a.png")]
    with pytest.raises(UserError, match="There is no column 'txt'.*Did you mean 'text'"):
        FolderSource(folder, text="txt")
    write_jsonl(folder / "metadata.jsonl", [{"image": "a.png", "text": "an apple"}])
    with pytest.raises(UserError, match="There is no column 'file_name'"):
        FolderSource(folder)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no picture .* in the folder"):
        FolderSource(tmp_path)
    with pytest.raises(UserError, match="There is no folder .*nowhere"):
        FolderSource(tmp_path / "nowhere")


def test_the_identity_changes_with_files_and_options(folder):
    identities = [
        FolderSource(folder, **options).identity()
        for options in ({}, {"query": "image"}, {"captions": "lines"}, {"captions": "first"})
    ]
    (folder / "a.txt").write_text("another apple")
    identities.append(FolderSource(folder).identity())
    (folder / "b.png").rename(folder / "bb.png")
    identities.append(FolderSource(folder).identity())
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": "an apple"}])
    identities.append(FolderSource(folder).identity())
    assert len({str(identity) for identity in identities}) == 7


def test_linked_folders_are_read_once_each_and_loops_end(folder, tmp_path):
    outside = tmp_path / "outside" / "deep"
    outside.mkdir(parents=True)
    (outside / "d.PNG").write_bytes(picture(6))
    (outside / "d.TXT").write_text("a dog")
    (outside / "back").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "once more").symlink_to(outside)
    source = FolderSource(folder)
    check_source(source, 4, 0)
    assert ("a dog", "linked/deep/d.PNG") in pairs_of(source) or ("a dog", "once more/d.PNG") in pairs_of(source)
    assert source.notes() == [f"Not read in {folder}: 2 link to a folder that is read already."]


def test_what_is_in_a_folder_and_not_read_is_counted(folder):
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "drawing.txt").write_text("a drawing")
    (folder / "alone.jpeg").write_bytes(picture(5))
    (folder / ".hidden").mkdir()
    for name in (".a.png", "notes.md", "README"):
        (folder / name).write_text("x")
    source = FolderSource(folder)
    records = check_source(source, 5, 2)
    assert "drawing.svg beside the text file is of a format that is not read; convert it" in " ".join(
        problems_of(records)
    )
    notes = " ".join(source.notes())
    assert f"There are 1 pictures without a text file and 1 text files without a picture in {folder}." in notes
    for part in ("2 hidden", "1 .svg", "1 .md", "1 without ending", "kind .svg are not read: convert them"):
        assert part in notes


def test_a_folder_of_svg_alone_says_what_to_do(tmp_path):
    (tmp_path / "a.SVG").write_text("<svg/>")
    (tmp_path / "a.txt").write_text("a caption")
    with pytest.raises(UserError, match=r"There is no picture .* 1 \.svg.*convert them, to PNG"):
        open_source("auto", tmp_path)


def test_the_first_line_alone_can_be_the_caption(folder):
    check_source(FolderSource(folder, captions="first"), 3, 0)
    assert pairs_of(FolderSource(folder, captions="first"))[0] == ("an apple", "a.png")
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png", "text": ["one", "two"], "licence": "CC0"}])
    source = FolderSource(folder, captions="first")
    assert pairs_of(source) == [("one", "a.png")] and source.total() == 1
    notes = " ".join(source.notes())
    assert "3 pictures" in notes and "3 text files beside them are not read" in notes and "not used: 'licence'" in notes
    with pytest.raises(UserError, match="captions=lines is for text files"):
        FolderSource(folder, captions="lines")


def test_an_option_without_effect_is_refused(folder):
    with pytest.raises(UserError, match="text=caption names a column of metadata files, and .* has none"):
        FolderSource(folder, text="caption")


def test_a_pipe_in_place_of_a_text_file_is_a_problem(folder):
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    assert problems_of(check_source(FolderSource(folder), 3, 1)) == [
        "the text file a.txt is not a file that can be read"
    ]
