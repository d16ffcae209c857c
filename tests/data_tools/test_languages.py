import pytest

from data_tools.inspect.measure import MINIMUM_BYTES, UNDETERMINED, language_of

SENTENCES = {
    "en": "The quick brown fox jumps over the lazy dog and runs away from the hunters.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund und läuft vor den Jägern davon.",
    "fr": "Le petit renard brun saute par-dessus le chien paresseux et s'enfuit loin des chasseurs.",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку и убегает от охотников.",
    "zh": "敏捷的棕色狐狸跳过了那只懒狗,然后从猎人身边逃走了。",
    "ja": "素早い茶色の狐がのろまな犬を飛び越えて、猟師から逃げていきました。",
    "ar": "قفز الثعلب البني السريع فوق الكلب الكسول وهرب بعيدا عن الصيادين.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_told_by_its_language(language):
    assert language_of(SENTENCES[language]) == language
    assert language_of(f"\n {SENTENCES[language]}\t" * 200) == language


@pytest.mark.parametrize("text", ["", "cat", "猫", "4711", "a red square", "  \n " * 50 + "cat"])
def test_a_short_text_is_undetermined_and_not_guessed(text):
    assert len(" ".join(text.split()).encode()) < MINIMUM_BYTES
    assert language_of(text) == UNDETERMINED


def test_what_is_no_language_is_undetermined():
    assert language_of("0123 4567 8901 2345 6789 0123 4567 8901") == UNDETERMINED
