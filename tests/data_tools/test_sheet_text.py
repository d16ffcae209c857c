import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.sheet_text import ELLIPSIS, Typeface, fitting_lines, printable
from pdfx.errors import UserError

TYPEFACE = Typeface()
FONT = TYPEFACE.sized(15)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(20, 300), st.integers(1, 6))
def test_lines_of_any_text_fit_and_lose_nothing_without_an_ellipsis(text, width, limit):
    lines = fitting_lines(text, FONT, width, limit)
    assert len(lines) <= limit
    # A single character may be wider than the cell; it still has a line.
    assert all(FONT.getlength(line) <= width or len(line.removesuffix(ELLIPSIS)) <= 1 for line in lines)
    if not (lines and lines[-1].endswith(ELLIPSIS)):
        assert "".join(lines).replace(" ", "") == printable(text).replace(" ", "")


def test_lines_end_between_words():
    lines = fitting_lines("one two three four five six seven", FONT, 90, 10)
    assert len(lines) > 2
    assert " ".join(lines) == "one two three four five six seven"


def test_a_text_that_is_too_long_ends_with_an_ellipsis():
    lines = fitting_lines("word " * 1000, FONT, 200, 3)
    assert len(lines) == 3
    assert lines[-1].endswith(ELLIPSIS) and not any(ELLIPSIS in line for line in lines[:-1])


def test_control_characters_and_invisible_marks_are_not_drawn():
    assert printable("a\x00b\n\tc\u200b\u202ed\u2028e") == "a b cd e"


@pytest.mark.parametrize("text, lacking", [("Größe", False), ("лиса", False), ("قطة", False), ("猫", True), ("🦜", True), (" \n", False)])
def test_characters_that_the_font_lacks_are_known(text, lacking):
    assert TYPEFACE.lacks(text) is lacking


def test_a_file_that_is_no_font_is_told(tmp_path):
    with pytest.raises(UserError, match="There is no font file .*absent.ttf"):
        Typeface(tmp_path / "absent.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(UserError, match="text.ttf cannot be drawn"):
        Typeface(tmp_path / "text.ttf")
