import pytest

from data_tools.sources.values import has_marker, without_markers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|image_1|>\nDescribe the picture.\n", "Describe the picture."),
        ("<|image_1|> Describe the picture: a dog", "Describe the picture: a dog"),
        ("<|image_1|><|image_2|> Compare", "Compare"),
        ("<image>\n<image>\nCompare", "Compare"),
        ("First line\n<|image_1|>\nlast line", "First line\nlast line"),
        ("What is it? <|image_1|>", "What is it?"),
        ("What is it? <|image_1|> Answer.", "What is it? Answer."),
        ("Describe this: <|image_pad|>", "Describe this:"),
        ("Describe this: <|image_1|> in a word", "Describe this: in a word"),
        ("Look at <|image_1|> and name it", "Look at the image and name it"),
        ("Name what is in <|image_1|>.", "Name what is in the image."),
        ("From <|image_1|>, name it", "From the image, name it"),
        ("Name what the given <|image_1|> shows", "Name what the given image shows"),
        ("Name the given image <|image_1|>.", "Name the given image."),
        ("Name the given photo, <|image_1|>, in a word", "Name the given photo, in a word"),
        ("<|image_1|> can be described as", "The image can be described as"),
        ("<|image_1|> canned fish", "canned fish"),
        ("Look at<|image_1|>closely", "Look at the image closely"),
        ("<|image_1|>", ""),
    ],
)
def test_a_marker_goes_where_it_stands_alone_and_becomes_words_in_a_sentence(text, expected):
    assert has_marker(text)
    assert without_markers(text) == expected


@pytest.mark.parametrize("text", ["a < b and c > d", "<|image|>", "two  spaces\n\nand  lines", "<images>"])
def test_other_texts_stay_as_they_are(text):
    assert not has_marker(text)
    assert without_markers(f" {text}\n") == text
