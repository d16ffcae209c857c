import base64

import pytest
from source_checks import check_source, problems_of
from tiny_formats import write_jsonl, write_swift
from tiny_shards import picture

from data_tools.sources.swift import SwiftSource


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


GOOD = {"messages": user("anchor"), "positive_messages": [user("positive")]}

# The three lines for InfoNCE in ms-swift's documentation of its data sets, in its own words for the fields.
PUBLISHED = [
    {"messages": user("sentence1"), "positive_messages": [user("sentence2")]},
    {"messages": user("<image>"), "images": ["/some/images.jpg"], "positive_messages": [user("sentence")]},
    {
        "messages": user("<image>sentence1"),
        "images": ["/some/images.jpg"],
        "positive_messages": [user("<image>sentence2")],
        "positive_images": [["/some/positive_images.jpg"]],
        "negative_messages": [user("<image><image>sentence3"), user("<image>sentence4")],
        "negative_images": [
            ["/some/negative_images1.jpg", "/some/negative_images2.jpg"],
            ["/some/negative_images3.jpg"],
        ],
    },
]


def test_lines_as_published_become_records(tmp_path):
    records = [
        source.record for source in check_source(SwiftSource(write_jsonl(tmp_path / "a.jsonl", PUBLISHED)), 3, 0)
    ]
    assert (records[0].query.text, records[0].target.text) == ("sentence1", "sentence2")
    assert (records[1].query.text, records[1].query.images, records[1].target.text) == (
        "",
        ["/some/images.jpg"],
        "sentence",
    )
    assert (records[2].target.text, records[2].target.images) == ("sentence2", ["/some/positive_images.jpg"])
    assert [(side.text, side.images) for side in records[2].negatives] == [
        ("sentence3", ["/some/negative_images1.jpg", "/some/negative_images2.jpg"]),
        ("sentence4", ["/some/negative_images3.jpg"]),
    ]


def test_the_fixture_of_many_lines_is_read_whole(tmp_path):
    records = [source.record for source in check_source(SwiftSource(write_swift(tmp_path, 9)), 9, 0)]
    assert [len(record.negatives) for record in records] == [0, 1, 2] * 3
    assert records[2].query.text == "Find what belongs to it.\npicture 2" and records[2].query.images == [
        "pictures/1.png"
    ]
    assert records[2].negatives[1].images == ["pictures/0.png"]


def test_several_positives_give_the_first_or_a_record_each(tmp_path):
    several = GOOD | {"positive_messages": [user("one"), user("two"), user("three")]}
    path = write_jsonl(tmp_path / "a.jsonl", [several, GOOD, {}, several])
    assert [source.record.target.text for source in check_source(SwiftSource(path), 4, 1) if source.record] == [
        "one",
        "positive",
        "one",
    ]
    each = check_source(SwiftSource(path, positives="each"), 8, 1)
    assert [source.record and source.record.target.text for source in each] == [
        "one",
        "two",
        "three",
        "positive",
        None,
        "one",
        "two",
        "three",
    ]
    assert {source.record.query.text for source in each if source.record} == {"anchor"}


def test_only_so_many_negatives_are_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"negative_messages": [user(f"n{i}") for i in range(5)]}])
    assert [len(next(SwiftSource(path, negatives=most).records()).record.negatives) for most in (None, 0, 2, 9)] == [
        5,
        0,
        2,
        5,
    ]


def test_pairs_whose_label_is_too_low_are_told_and_not_trained_on(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD | {"label": label} for label in (1, 0.8, 0, None, "x", True)])
    assert problems_of(check_source(SwiftSource(path), 6, 2)) == [
        "'label' is 0, below min_label=0.5, so it is not a positive pair",
        "'label' is 'x': it must be a number",
    ]
    assert len(problems_of(check_source(SwiftSource(path, min_label=0.9), 6, 3))) == 3


def test_content_may_be_a_list_of_parts_with_its_own_pictures(tmp_path):
    address = "data:image/png;base64," + base64.b64encode(picture(0)).decode()
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "a cat"},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    (source,) = check_source(SwiftSource(write_jsonl(tmp_path / "a.jsonl", [GOOD | {"messages": user(parts)}])), 1, 0)
    assert source.record.query.text == "a cat" and source.record.query.images[0] == "a.png"
    assert source.pictures == {source.record.query.images[1]: picture(0)}


@pytest.mark.parametrize(
    "line, problem",
    [
        ({}, "'messages' is missing or empty: there is no query"),
        ({"messages": user("anchor")}, "'positive_messages' is missing or empty: there is no target"),
        (GOOD | {"messages": "anchor"}, "'messages' is 'anchor': it must be a list"),
        (GOOD | {"messages": ["anchor"]}, "'messages.0' is 'anchor': it must be an object with 'role' and 'content'"),
        (
            GOOD | {"messages": [{"role": "user"}]},
            "'messages.0' is {'role': 'user'}: it must be an object with 'role' and 'content'",
        ),
        (GOOD | {"messages": user(5)}, "'messages.0.content' is 5: it must be a list"),
        (
            GOOD | {"messages": user([{"type": "video", "video": "a.mp4"}])},
            "it must be a part of type 'text' or 'image'",
        ),
        (GOOD | {"messages": user("")}, "'messages' holds neither a text nor a picture"),
        (GOOD | {"messages": user("<video>")}, "'messages' has the tag <video>; only texts and pictures can be read"),
        (GOOD | {"messages": user("<image>")}, "'messages' has 1 tags <image> and 'images' 0 pictures"),
        (GOOD | {"images": ["a.png"]}, "'messages' has 0 tags <image> and 'images' 1 pictures"),
        (
            GOOD | {"messages": user("<image>"), "images": [5]},
            "'images' is 5: it must be the path of a picture, or its bytes",
        ),
        (GOOD | {"messages": user("<image>"), "images": ["https://a.b/c.png"]}, "pictures are not downloaded"),
        (
            GOOD | {"messages": user("<image>"), "images": ["data:image/png;base64,!"]},
            "'images' is a data address that cannot be decoded",
        ),
        (
            GOOD | {"messages": user("<image>"), "images": [{"path": None}]},
            "'images' holds neither the bytes nor the path of a picture",
        ),
        (
            GOOD | {"positive_messages": user("positive")},
            "'positive_messages.0' is {'role': 'user', 'content': 'positive'}: it must be a list",
        ),
        (
            GOOD | {"positive_images": [["a.png"], ["b.png"]]},
            "'positive_messages' has 1 conversations and 'positive_images' 2 lists",
        ),
        (
            GOOD | {"positive_images": [["a.png"]]},
            "'positive_messages.0' has 0 tags <image> and 'positive_images.0' 1 pictures",
        ),
        (
            GOOD | {"negative_messages": [user("<image>")]},
            "'negative_messages.0' has 1 tags <image> and 'negative_images.0' 0 pictures",
        ),
        (GOOD | {"negative_messages": [[]]}, "'negative_messages.0' holds neither a text nor a picture"),
    ],
)
def test_a_malformed_line_is_a_problem_that_names_the_field(tmp_path, line, problem):
    (found,) = problems_of(check_source(SwiftSource(write_jsonl(tmp_path / "a.jsonl", [GOOD, line, GOOD])), 3, 1))
    assert problem in found


def test_the_identity_changes_with_files_and_options(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    sources = [
        SwiftSource(path),
        SwiftSource(path, "each"),
        SwiftSource(path, negatives=1),
        SwiftSource(path, min_label=0.6),
    ]
    identities = [source.identity() for source in sources]
    write_jsonl(path, [GOOD, GOOD])
    identities.append(SwiftSource(path).identity())
    assert len({str(identity) for identity in identities}) == 5


def test_tags_around_a_text_are_removed_and_one_within_a_sentence_becomes_words(tmp_path):
    contents = ["<image>\n<image>a cat", "a cat <image>", "<image>a cat\n<image>", "Describe <image> in a word."]
    lines = [GOOD | {"messages": user(content), "images": ["a.png"] * content.count("<image>")} for content in contents]
    records = check_source(SwiftSource(write_jsonl(tmp_path / "a.jsonl", lines)), 4, 0)
    assert [source.record.query.text for source in records] == ["a cat"] * 3 + ["Describe the image in a word."]


@pytest.mark.parametrize("images", [["b.png"], []])
def test_pictures_stand_in_parts_or_in_the_list_but_not_in_both(tmp_path, images):
    line = GOOD | {"messages": user([{"type": "image", "image": "a.png"}]), "images": images}
    (source,) = check_source(SwiftSource(write_jsonl(tmp_path / "a.jsonl", [line])), 1, len(images))
    assert source.problem == ("'messages' holds pictures itself, so 'images' must be empty" if images else None)
