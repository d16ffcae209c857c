import io
import json

from rich.console import Console
from tiny_shards import damage_image, make_shards, picture, write_records

from data_tools.build import build_shards
from data_tools.describe import describe_shards, description_tables


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
