import io
import json

import pytest
from PIL import Image
from rich.console import Console
from tiny_shards import damage_image, make_shards, picture, write_records

from data_tools.build.builder import build_shards
from data_tools.inspect.describe import describe_shards, description_tables


def test_the_description_counts_what_was_built(tmp_path):
    (tmp_path / "wide.png").write_bytes(picture(0, width=30, height=10))
    (tmp_path / "tall.png").write_bytes(picture(1, width=8, height=50))
    records = [
        {"query": {"text": "two words"}, "target": {"images": ["wide.png", "tall.png"]}, "negatives": [{"text": "n"}]},
        {"query": {"text": "one", "images": ["wide.png"]}, "target": {"text": "same"}},
        {"query": {"text": "three words here"}, "target": {"text": "same"}},
    ]
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "shards", 2)
    description = describe_shards(tmp_path / "shards")
    json.dumps(description)
    assert (description["shards"], description["samples"], description["unusable"]) == (2, 3, 0)
    assert (description["targets"], description["samples_sharing_target"]) == (2, 2)
    query, target, negatives = (description["sides"][side] for side in ("query", "target", "negatives"))
    assert (query["items"], query["text_only"], query["image_only"], query["text_and_image"]) == (3, 2, 0, 1)
    assert query["text_words"] == {"minimum": 1, "median": 2, "p95": 3, "maximum": 3}
    assert query["text_characters"]["maximum"] == len("three words here")
    assert (target["text_only"], target["image_only"]) == (2, 1)
    assert target["images_per_item"]["maximum"] == 2
    assert (target["image_width"]["minimum"], target["image_width"]["maximum"]) == (8, 30)
    assert (target["image_height"]["minimum"], target["image_height"]["maximum"]) == (10, 50)
    assert (negatives["items"], negatives["image_width"]) == (1, None)


def test_equal_content_is_counted_under_whatever_name(tmp_path):
    for name, seed in (("a.png", 0), ("copy.png", 0), ("b.png", 1)):
        (tmp_path / name).write_bytes(picture(seed))
    records = [
        {"query": {"text": "q"}, "target": {"images": ["a.png"]}, "target_id": "one"},
        {"query": {"text": "q"}, "target": {"images": ["copy.png"]}, "target_id": "two"},
        {"query": {"text": "other"}, "target": {"images": ["a.png"]}},
        {"query": {"text": "q"}, "target": {"images": ["b.png"]}},
        {"query": {"text": "", "images": ["b.png"]}, "target": {"text": "q"}},
    ]
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "shards")
    assert describe_shards(tmp_path / "shards")["duplicates"] == {
        "queries": {"distinct": 3, "sharing": 3},
        "targets": {"distinct": 3, "sharing": 3},
        "pairs": {"distinct": 4, "sharing": 2},
        "pictures": {"distinct": 2, "sharing": 5},
    }


def test_languages_formats_and_negatives_are_told(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    (tmp_path / "drawing.png").write_bytes(picture(0))
    english = "The quick brown fox jumps over the lazy dog and runs away from the hunters."
    german = "Der schnelle braune Fuchs springt über den faulen Hund und läuft vor den Jägern davon."
    records = [
        {
            "query": {"text": english},
            "target": {"images": ["photo.jpg", "photo.jpg"]},
            "negatives": [{"text": "cat"}, {"text": german}],
        },
        {"query": {"text": german}, "target": {"images": ["drawing.png"]}},
        {"query": {"text": english + " Again."}, "target": {"images": ["photo.jpg"]}, "negatives": [{"text": "dog"}]},
    ]
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "shards", 2)
    description = describe_shards(tmp_path / "shards")
    query, target, negatives = (description["sides"][side] for side in ("query", "target", "negatives"))
    assert list(query["languages"].items()) == [("en", 2), ("de", 1)]
    assert negatives["languages"] == {"undetermined": 2, "de": 1}
    assert list(target["image_formats"].items()) == [("jpg", 3), ("png", 1)]
    assert description["negatives_per_sample"] == {"minimum": 0, "median": 1, "p95": 2, "maximum": 2}
    assert description["samples_per_shard"] == {"minimum": 1, "median": 1, "p95": 2, "maximum": 2}


def test_languages_are_guessed_from_so_many_samples_and_no_more(tmp_path):
    shards = make_shards(tmp_path)
    description = describe_shards(shards, language_samples=4)
    assert description["language_samples"] == 4
    assert sum(description["sides"]["query"]["languages"].values()) == 4
    assert description["sides"]["query"]["items"] == 25


@pytest.mark.process
def test_the_description_does_not_depend_on_the_number_of_processes(tmp_path):
    shards = make_shards(tmp_path)
    calls = []
    assert describe_shards(shards, lambda *counts: calls.append(counts), workers=2) == describe_shards(shards)
    assert calls == [(10, 25), (20, 25), (25, 25)]


def test_shards_behind_a_url_are_described_like_local_ones(tmp_path):
    shards = make_shards(tmp_path)
    assert describe_shards(shards.as_uri()) == describe_shards(shards)


def test_unusable_samples_are_counted_and_do_not_enter_the_rest(tmp_path):
    shards = make_shards(tmp_path)
    tar = (shards / "00000.tar").read_bytes()
    place = tar.find(b"sample-004.json")
    (shards / "00000.tar").write_bytes(tar[:place] + bytes(512) + tar[place + 512 :])
    description = describe_shards(shards)
    assert (description["unusable"], description["sides"]["query"]["items"], description["targets"]) == (1, 24, 24)


def test_the_tables_show_the_numbers(tmp_path):
    shards = make_shards(tmp_path)
    damage_image(shards, 0)
    console = Console(width=120, record=True, file=io.StringIO())
    for table in description_tables(describe_shards(shards)):
        console.print(table)
    text = console.export_text()
    assert "query: 25 items (25 text, 0 image, 0 both)" in text
    assert "target: 25 items (0 text, 0 image, 25 both)" in text
    assert "negatives: 24 items" in text
    assert "formats: png 25" in text
    assert "languages: undetermined 25" in text
    assert "guessed from 25 texts of 25 samples" in text
