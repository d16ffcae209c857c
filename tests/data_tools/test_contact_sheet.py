import pytest
from PIL import Image
from tiny_shards import damage_image, make_shards, write_records

from data_tools.build import build_shards
from data_tools.contact_sheet import write_contact_sheet
from pdfx.errors import UserError

RED, GREEN, BLUE = (220, 0, 0), (0, 160, 0), (0, 0, 210)


def shards_of(tmp_path, records, **pictures):
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
    build_shards(write_records(tmp_path, records), tmp_path, tmp_path / "shards")
    return tmp_path / "shards"


def has_colour(file, colour) -> bool:
    return colour in {found for _, found in Image.open(file).convert("RGB").getcolors(1 << 24)}


def test_the_sheet_shows_the_pictures_of_both_sides(tmp_path):
    pictures = {name: Image.new("RGB", (50, 40), colour) for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))}
    records = [{"query": {"images": ["red.png"]}, "target": {"text": "two", "images": ["green.png", "blue.png"]}}]
    summary = write_contact_sheet(shards_of(tmp_path, records, **pictures), tmp_path / "sheet.png")
    image = Image.open(tmp_path / "sheet.png")
    assert (image.format, image.size) == ("PNG", (summary.width, summary.height))
    assert all(has_colour(tmp_path / "sheet.png", colour) for colour in (RED, GREEN, BLUE))


def test_the_same_samples_are_drawn_every_time_and_no_more_than_asked_for(tmp_path):
    shards = make_shards(tmp_path)
    counts = []
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file in files:
        summary = write_contact_sheet(shards, file, samples=7, progress=lambda done, total: counts.append((done, total)))
        assert (summary.samples, summary.lacking) == (7, 0)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert counts == [(done, 7) for done in range(1, 8)] * 2
    assert write_contact_sheet(shards, files[0], samples=1000).samples == 25


def test_any_script_is_drawn_and_what_the_font_lacks_is_counted(tmp_path):
    texts = ["Größe", "кошка", "قطة سوداء", "猫が好きです", "🦜 parrot", "a\u0301\u200d\x00\n" * 90, "X" * 5000, "नमस्ते"]
    shards = shards_of(tmp_path, [{"query": {"text": text}, "target": {"text": text[::-1]}} for text in texts])
    summary = write_contact_sheet(shards, tmp_path / "sheet.png")
    assert (summary.samples, summary.lacking) == (8, 3)


def test_a_sample_that_cannot_be_used_is_shown_as_such(tmp_path):
    shards = make_shards(tmp_path, samples=1)
    damage_image(shards, 0)
    write_contact_sheet(shards, tmp_path / "sheet.png")
    assert has_colour(tmp_path / "sheet.png", (0xB3, 0x26, 0x1E))


def test_pictures_of_any_shape_keep_the_sheet_small(tmp_path):
    shapes = {"wide": (2000, 1), "tall": (1, 2000), "dot": (1, 1), "large": (600, 500)}
    records = [{"query": {"images": [f"{name}.png"]}, "target": {"images": [f"{other}.png" for other in shapes] * 2}} for name in shapes]
    summary = write_contact_sheet(shards_of(tmp_path, records, **{name: Image.new("RGB", size, RED) for name, size in shapes.items()}), tmp_path / "sheet.png")
    assert summary.width < 1500 and summary.height < 800


def test_mistakes_are_told_and_nothing_is_written(tmp_path):
    shards = make_shards(tmp_path, samples=1)
    with pytest.raises(UserError, match="sheet.jpg would be a PNG"):
        write_contact_sheet(shards, tmp_path / "sheet.jpg")
    with pytest.raises(UserError, match="no font file"):
        write_contact_sheet(shards, tmp_path / "sheet.png", font=tmp_path / "absent.ttf")
    with pytest.raises(UserError, match="no directory of shards"):
        write_contact_sheet(tmp_path / "absent", tmp_path / "sheet.png")
    assert not list(tmp_path.glob("sheet*"))
