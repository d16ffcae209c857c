"""What a caller gives to ``embed`` is embedded, or refused by its number and key; long texts cost no more than what is
kept of them."""

import random
import subprocess
import sys
import warnings

import pytest
from peak_memory import FOR_CHILDREN
from PIL import Image
from tiny_models import FAMILIES, SENTENCES, picture, tiny_backbone

from pdfx.model.processing import HEAD_CHARACTERS, HEAD_TOKENS, ItemError

SOUND = {"text": "a frog"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"image": picture(0)}, "the key 'image', which is unknown; the nearest one is 'images'"),
        ({"txt": "a frog"}, "the key 'txt', which is unknown; the nearest one is 'text'"),
        ({"text": "a frog", "target_id": "1"}, "the key 'target_id', which is unknown"),
        ({}, "neither a text nor an image"),
        ({"text": ""}, "neither a text nor an image"),
        ({"text": " \n", "images": []}, "neither a text nor an image"),
        ({"text": "\u200b\0"}, "neither a text nor an image"),
        ({"text": None, "images": None}, "neither a text nor an image"),
        ("a frog", "must be a dict with 'text' and 'images', not str"),
        (None, "must be a dict with 'text' and 'images', not NoneType"),
        ({"text": ["a frog"]}, "'text' must be a str, not list"),
        ({"text": b"a frog"}, "'text' must be a str, not bytes"),
        ({"images": picture(0)}, "'images' must be a list, not Image"),
        ({"images": "a.png"}, "'images' must be a list, not str"),
        ({"images": [None]}, "a picture is given as a path, .* not as NoneType"),
        ({"images": [picture(0), "absent.png"]}, "'absent.png' cannot be read"),
        ({"images": [b"GIF89a"]}, "damaged|no picture"),
    ],
)
def test_an_item_that_would_be_embedded_as_something_else_is_named(embedder_of, wrong, reason):
    embedder = embedder_of("llava_next")
    with pytest.raises(ItemError, match=rf"^items\[3\] cannot be embedded: .*{reason}") as raised:
        embedder.embed([SOUND, SOUND, SOUND, wrong, SOUND], batch_size=2)
    assert raised.value.number == 3 and str(raised.value).endswith(".")


@pytest.mark.parametrize("wrong", [SOUND, "a frog", b"a frog", None, 3])
def test_items_that_are_no_list_of_items_are_refused(embedder_of, wrong):
    with pytest.raises(ValueError, match="must be a list of dicts with 'text' and 'images'"):
        embedder_of("llava_next").embed(wrong)


@pytest.mark.parametrize("paths", [1, "fused", [], [9]])
def test_paths_that_do_not_exist_and_no_items_at_all_are_refused(embedder_of, paths):
    with pytest.raises(ValueError, match="Paths must be a list of numbers among 0 to"):
        embedder_of("llava_next").embed([SOUND], paths=paths)
    with pytest.raises(ValueError, match="no items to embed"):
        embedder_of("llava_next").embed([])


def test_a_picture_that_the_processor_refuses_is_named_by_its_item(embedder_of):
    with pytest.raises(
        ItemError, match=r"^items\[2\] cannot be embedded: absolute aspect ratio must be smaller than 200"
    ):
        embedder_of("qwen2_vl").embed([SOUND, SOUND, {"images": [Image.new("RGB", (300, 1))]}])


def test_missing_values_tuples_and_generators_are_welcome(embedder_of):
    embedder, image = embedder_of("llava_next"), picture(0)
    wanted = embedder.embed([SOUND, {"images": [image]}]).paths
    given = embedder.embed(
        item for item in ({"text": "a frog", "images": None}, {"text": None, "images": (image,)})
    ).paths
    assert (wanted - given).abs().max() == 0


def test_texts_that_are_cut_are_told_once_per_call(embedder_of):
    embedder = embedder_of("llava_next", inputs={"max_text_tokens": 6})
    with pytest.warns(
        UserWarning, match=r"^3 of 4 texts are longer than max_text_tokens \(6\) and were cut there"
    ) as told:
        embedder.embed([{"text": "red green blue " * 50}] * 3 + [{"text": "red"}], batch_size=1)
    assert len(told) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed([{"text": "red"}])


def whole_cut(processor, text):
    """What the tokens of the whole text say."""
    limit = processor.settings["max_text_tokens"]
    offsets = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return (text, False) if len(offsets) <= limit else (text[: offsets[limit - 1][1]], True)


def random_text(draw: random.Random) -> str:
    alphabets = [
        *(" ".join(SENTENCES), "abc", "a", "é" + "e\u0301", "日本語の文章", "🐸👩\u200d👩\u200d👧\u200d👦🇩🇪"),
        *(" ", "\n\t ", "العربية", "<image></s><|image_pad|>", "\0\x7f\ufeff", "a\u0301\u0327"),
    ]
    parts = []
    for _ in range(draw.randint(1, 12)):
        alphabet, length = draw.choice(alphabets), draw.choice([1, 5, 60, 900])
        parts.append(alphabet * (length // 4 + 1) if draw.random() < 0.5 else "".join(draw.choices(alphabet, k=length)))
    return draw.choice(["", " "]).join(parts) * draw.choice([1, 1, 8])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("limit", [1, 7, 300])
def test_texts_are_cut_where_the_tokens_of_the_whole_say(embedder_of, family, limit):
    processor, draw = embedder_of(family, inputs={"max_text_tokens": limit}).processor, random.Random(limit)
    texts = [random_text(draw) for _ in range(60)]
    assert sum(len(text) > HEAD_CHARACTERS * (limit + HEAD_TOKENS) for text in texts) > 10
    # Lengths around those at which more is tokenised.
    edges = [
        size + step
        for size in (HEAD_CHARACTERS * (limit + HEAD_TOKENS), 4 * HEAD_CHARACTERS * (limit + HEAD_TOKENS))
        for step in (-1, 0, 1)
    ]
    texts += [(text * 40)[:edge] for text in texts[:5] for edge in edges]
    assert [text for text in texts if processor.cut(text) != whole_cut(processor, text)] == []


@pytest.mark.process
def test_a_text_of_20_megabytes_costs_little_memory(tmp_path):
    code = """
import sys
from peak_memory import begin, peak
from pdfx.model import ParallelEmbedder
processor = ParallelEmbedder.from_backbone(sys.argv[1], paths=1, prefix_length=1).processor
begin()
before = peak()
for text in ("a quick brown fox " * 1_100_000, "日本語" * 2_200_000, "a" * 20_000_000):
    assert processor([{"text": text, "images": []}], ["query"])[1] == 1
print((peak() - before) >> 20)
"""
    command = [sys.executable, "-c", code, str(tiny_backbone("llava_next", tmp_path))]
    result = subprocess.run(command, env=FOR_CHILDREN, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 500
