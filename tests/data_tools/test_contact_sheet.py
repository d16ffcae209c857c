import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image
from tiny_shards import damage_image, make_shards, write_records

from data_tools.build.builder import build_shards
from data_tools.inspect.contact_sheet import write_contact_sheet
from pdfx.errors import UserError

RED, GREEN, BLUE = (220, 0, 0), (0, 160, 0), (0, 0, 210)


class Page(HTMLParser):
    """The texts and pictures of a page, and the addresses that it would load from elsewhere."""

    def __init__(self, file):
        super().__init__()
        self.texts, self.pictures, self.tags = [], [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset"):
                assert value.startswith("data:image/webp;base64,")
                self.pictures.append(
                    Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2])), formats=["WEBP"])
                )

    def handle_data(self, data):
        self.texts.append(data)


def shards_of(tmp_path, records, **pictures):
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "shards")
    return tmp_path / "shards"


def test_the_page_shows_the_pictures_and_texts_of_both_sides(tmp_path):
    pictures = {
        name: Image.new("RGB", (50, 40), colour) for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))
    }
    records = [{"query": {"images": ["red.png"]}, "target": {"text": "two", "images": ["green.png", "blue.png"]}}]
    assert write_contact_sheet(shards_of(tmp_path, records, **pictures), tmp_path / "sheet.html") == 1
    page = Page(tmp_path / "sheet.html")
    for image, colour in zip(page.pictures, (RED, GREEN, BLUE), strict=True):
        assert all(
            abs(found - wanted) < 12
            for found, wanted in zip(image.convert("RGB").getpixel((20, 20)), colour, strict=True)
        )
    assert {"query", "target \u00b7 2 pictures", "two"} <= set(page.texts)


def test_the_same_samples_are_shown_every_time_and_no_more_than_asked_for(tmp_path):
    shards = make_shards(tmp_path)
    counts = []
    files = [tmp_path / "one.html", tmp_path / "two.html"]
    for file in files:
        assert (
            write_contact_sheet(shards, file, samples=7, progress=lambda done, total: counts.append((done, total))) == 7
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    assert counts == [(done, 7) for done in range(1, 8)] * 2
    assert write_contact_sheet(shards, files[0], samples=1000) == 25


def test_texts_of_any_script_stand_as_they_are_and_are_never_markup(tmp_path):
    texts = [
        "Größe",
        "кошка",
        "قطة سوداء",
        "猫が好きです",
        "🦜 parrot",
        "<script>alert(1)</script>",
        "{{ 1 + 1 }}",
        "</p><img src=x>",
    ]
    shards = shards_of(tmp_path, [{"query": {"text": text}, "target": {"text": "X" * 5000}} for text in texts])
    assert write_contact_sheet(shards, tmp_path / "sheet.html") == len(texts)
    page = Page(tmp_path / "sheet.html")
    assert set(texts) <= set(page.texts)
    assert not {"script", "img"} & set(page.tags)
    assert {len(text) for text in page.texts if text.startswith("X")} == {2000}


def test_a_sample_that_cannot_be_used_is_shown_as_such(tmp_path):
    shards = make_shards(tmp_path, samples=1)
    damage_image(shards, 0)
    write_contact_sheet(shards, tmp_path / "sheet.html")
    assert any("cannot be used" in text for text in Page(tmp_path / "sheet.html").texts)


def test_pictures_of_any_shape_and_number_keep_the_page_small(tmp_path):
    shapes = {"wide": (2000, 1), "tall": (1, 2000), "dot": (1, 1), "large": (600, 500)}
    records = [
        {"query": {"images": [f"{name}.png"]}, "target": {"images": [f"{other}.png" for other in shapes] * 2}}
        for name in shapes
    ]
    write_contact_sheet(
        shards_of(tmp_path, records, **{name: Image.new("RGB", size, RED) for name, size in shapes.items()}),
        tmp_path / "sheet.html",
    )
    pictures = Page(tmp_path / "sheet.html").pictures
    assert len(pictures) == 4 * (1 + 4) and all(max(image.size) <= 240 for image in pictures)


def test_mistakes_are_reported_and_nothing_is_written(tmp_path):
    shards = make_shards(tmp_path, samples=1)
    with pytest.raises(UserError, match="sheet.jpg would be an HTML page"):
        write_contact_sheet(shards, tmp_path / "sheet.jpg")
    with pytest.raises(UserError, match="no directory of shards"):
        write_contact_sheet(tmp_path / "absent", tmp_path / "sheet.html")
    assert not list(tmp_path.glob("sheet*"))
