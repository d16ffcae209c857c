import io

import numpy as np
from make_data import PIXELS, Picture, pictures, records, render, split
from PIL import Image

ITEMS = pictures()
TRAIN, TEST = split(ITEMS)


def test_no_concept_is_on_both_sides_and_a_fifth_is_held_out():
    train, test = ({item.concept for item in side} for side in (TRAIN, TEST))
    assert not train & test
    assert abs(len(test) / len(train | test) - 0.2) < 0.01


def test_no_training_name_names_a_held_out_picture():
    held_out = {item.name for item in TEST}
    assert not held_out & {record["target"]["text"] for record in records(TRAIN, with_aliases=True)}


def test_variants_by_skin_tone_gender_and_direction_share_a_concept():
    names = [
        "waving hand",
        "waving hand: medium-light skin tone",
        "man running facing right",
        "person running",
        "woman artist",
        "artist",
    ]
    concepts = [Picture("0", name.replace(":", ""), ()).concept for name in names]
    assert concepts == ["waving hand", "waving hand", "running", "running", "artist", "artist"]


def test_every_concept_of_more_than_one_emoji_lies_whole_on_one_side():
    for item in ITEMS:
        if not item.tones:
            assert (item in TRAIN) != (item in TEST)


def test_the_split_is_the_same_in_any_order():
    train, test = split(ITEMS[::-1])
    assert set(train) == set(TRAIN)
    assert set(test) == set(TEST)


def test_a_rendered_picture_shows_colours_on_white(tmp_path):
    render("1F34E", tmp_path)  # red apple
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "1F34E.png").read_bytes())).convert("RGB")).astype(int)
    assert picture.shape == (PIXELS, PIXELS, 3)
    assert (picture[0, 0] == 255).all()
    red = (picture[..., 0] > 180) & (picture[..., 1] < 120) & (picture[..., 2] < 120)
    assert red.mean() > 0.1
