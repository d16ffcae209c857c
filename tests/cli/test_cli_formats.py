import re

import pytest

from data_tools.sources.registry import FORMATS
from pdfx.cli.app import main


def run(capfd, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["shards", *words])
    return ended.value.code, *capfd.readouterr()


def test_all_formats_are_listed(capfd):
    code, out, _ = run(capfd, "formats")
    assert code == 0 and all(re.search(rf"^│ {name} +│", out, re.MULTILINE) for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_options_of_a_format_are_listed_with_their_meaning(capfd, name):
    code, out, _ = run(capfd, "formats", name)
    assert code == 0 and out.startswith(f"{name}: ")
    for option, given in FORMATS[name].options.items():
        assert re.search(rf"^│ {re.escape(option)}= +│ {re.escape(given.help.split()[0])}", out, re.MULTILINE)


def test_a_mistaken_format_is_told_with_the_nearest_one(capfd):
    code, _, error = run(capfd, "formats", "tevtron")
    assert code == 2 and "did you mean 'tevatron'?" in error


def test_help_has_examples(capfd):
    code, out, _ = run(capfd, "formats", "--help")
    assert code == 0 and "pdfx shards formats tevatron" in out
