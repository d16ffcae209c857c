import json

import pytest
from tiny_shards import picture

from data_tools.records import ImageFolder, read_records
from pdfx.errors import UserError

GOOD = {"query": {"text": "q"}, "target": {"text": "t"}}


def lines(tmp_path, *lines: bytes | dict):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", r"no valid JSON \(EOF while parsing an object at column 1\)"),
        (b'{"query": {"text": "\xff"}}', "no valid JSON"),
        (b'{"query": {"text": "\\ud800"}, "target": {"text": "t"}}', "no valid JSON"),
        (b"[1]", r"it is \[1\]: Input should be an object"),
        ({"querry": {"text": "q"}, "target": {"text": "t"}}, "unknown key 'querry'; did you mean 'query'?"),
        ({"query": {"txt": "q"}, "target": {"text": "t"}}, "unknown key 'query.txt'; did you mean 'text'?"),
        (GOOD | {"negatives": [{"image": ["a"]}]}, "unknown key 'negatives.0.image'; did you mean 'images'?"),
        ({"query": {"text": "q"}}, "the key 'target' is missing"),
        ({"query": {"text": 5}, "target": {"text": "t"}}, "'query.text' is 5: Input should be a valid string"),
        ({"query": {"text": "q", "images": "a.png"}, "target": {"text": "t"}}, "'query.images' is 'a.png': Input should be a valid array"),
        ({"query": {}, "target": {"text": "t"}}, "in 'query', there is neither a text nor an image"),
        (GOOD | {"key": "a.b"}, "'key' is 'a.b': a key is 1 to 64 letters"),
        (GOOD | {"key": "../a"}, "'key' is '../a': a key is 1 to 64 letters"),
        (GOOD | {"key": "x" * 65}, "a key is 1 to 64 letters"),
        (GOOD | {"target_id": ""}, "'target_id' is ''"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_line_and_key(tmp_path, line, message):
    path = lines(tmp_path, GOOD, b"", line)
    with pytest.raises(UserError, match=message) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path} line 3: ")
    assert "\n" not in str(caught.value)


def test_a_repeated_key_names_both_lines(tmp_path):
    with pytest.raises(UserError, match="line 3: the key 'a' is already that of line 1"):
        list(read_records(lines(tmp_path, GOOD | {"key": "a"}, GOOD, GOOD | {"key": "a"})))


def test_missing_records_are_told(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl cannot be read"):
        list(read_records(tmp_path / "nowhere.jsonl"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(picture(0))
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "images-two").mkdir()
    (tmp_path / "images-two" / "a.png").write_bytes(picture(2))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    return ImageFolder(tmp_path / "records.jsonl", tmp_path / "images", 1000)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "/etc/hostname", "../images-two/a.png", "", ".", "a.png\0"])
def test_a_path_that_leaves_the_image_folder_is_refused(folder, name):
    with pytest.raises(UserError, match="records.jsonl line 7: the image path .* leaves the image folder"):
        folder.read(7, name)


@pytest.mark.parametrize("name", ["a.png", "sub/../a.png", "./a.png"])
def test_a_path_that_stays_in_the_image_folder_is_read(folder, name):
    assert folder.read(1, name) == (picture(0), "png")


def test_links_that_the_image_folder_holds_are_followed(folder):
    assert folder.read(1, "link.png") == (picture(1), "png")


def test_a_missing_image_names_line_and_path(folder):
    with pytest.raises(UserError, match=r"records.jsonl line 7: there is no image .*images/b\.png"):
        folder.read(7, "b.png")


def test_a_corrupt_image_names_line_and_path(folder):
    (folder.root / "a.png").write_bytes(picture(0)[:80])
    with pytest.raises(UserError, match=r"records.jsonl line 7: the image .*a\.png cannot be used: .*damaged"):
        folder.read(7, "a.png")


def test_a_picture_above_the_pixel_limit_is_refused(folder):
    (folder.root / "a.png").write_bytes(picture(0, width=100, height=11))
    with pytest.raises(UserError, match="100 x 11 pixels, more than the 1000 allowed"):
        folder.read(7, "a.png")
