"""The data of the studies, from small archives of the form that npm's have."""

import base64
import hashlib
import io
import json
import tarfile

import make_study_data
import pytest
from make_study_data import colours, fetch
from make_study_data import make_study_data as make
from PIL import Image

CODES = ["1F34E", "1F34F", "1F347", "1F436", "1F431", "1F697", "1F68C", "2615", "26BD", "1F3E0", "1F511", "1F4D6"]
RED, GREEN = (215, 40, 45), (70, 160, 70)


def archive(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as package:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            package.addfile(entry, io.BytesIO(data))


def png(size: int = 64, left=RED, right=GREEN) -> bytes:
    """Two areas, the left one larger, on a transparent page."""
    image = Image.new("RGBA", (size, size))
    image.paste((*left, 255), (8, 8, 40, 56))
    image.paste((*right, 255), (40, 8, 56, 56))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    folder.mkdir()
    entry = {"group": 4, "subgroup": 40}
    tables = {}
    for language in ("en", "de"):
        labels = [f"{language} thing {i}" for i in range(len(CODES))]
        tables[language] = [
            {**entry, "hexcode": code, "label": label, "tags": [label, label.replace(" thing ", "")]}
            for code, label in zip(CODES, labels, strict=True)
        ]
    flag = {"group": 9, "subgroup": 99, "hexcode": "1F3C1", "label": "flag", "tags": ["x"]}
    tables["en"] += [{"hexcode": "1F1EB", "label": "a part"}, flag]
    messages = {"subgroups": [{"order": 40, "message": "food fruit"}]}
    files = {f"{language}/data.json": json.dumps(table).encode() for language, table in tables.items()}
    archive(folder / "emojibase-data-17.0.0.tgz", {**files, "en/messages.json": json.dumps(messages).encode()})
    for style in ("google", "twitter"):
        pictures = {f"img/{style}/64/{code.lower()}.png": png() for code in CODES}
        archive(folder / f"emoji-datasource-{style}-16.0.0.tgz", pictures)
    digests = {
        package: base64.b64encode(
            hashlib.sha512((folder / f"{package.replace('@', '-')}.tgz").read_bytes()).digest()
        ).decode()
        for package in make_study_data.PACKAGES
    }
    monkeypatch.setattr(make_study_data, "PACKAGES", digests)
    return folder


def test_the_sets_share_no_unseen_concept_and_every_picture_has_all_its_captions(tmp_path, packages):
    out = tmp_path / "data"
    make(out, packages)
    sets = {
        name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "names", "concepts", "style", "aspects")
    }
    pictures = {name: {line["query"]["images"][0] for line in lines} for name, lines in sets.items()}
    seen, unseen = ({name.split("-")[0] for name in pictures[side]} for side in ("train", "concepts"))
    assert len(unseen) == 2 and len(seen) == 10 and not seen & unseen
    assert pictures["style"] == {f"{code}-openmoji.png" for code in seen}
    assert pictures["aspects"] == {f"{code}-google.png" for code in unseen}
    assert pictures["train"] == pictures["names"] == {f"{code}-{s}.png" for code in seen for s in ("google", "twitter")}
    own = [line["target"]["text"] for line in sets["train"] if line["query"]["images"] == [f"{min(seen)}-google.png"]]
    number = CODES.index(min(seen))
    words = [f"{language}{kind}{number}" for language in ("en", "de") for kind in (" thing ", "")]
    assert own == [*words, "red and green, food fruit"]
    looks = {line["target_id"] for line in sets["train"] if line["key"].endswith("-look")}
    assert looks == {"look: red and green, food fruit"}
    assert {line["target_id"] for line in sets["aspects"]} == unseen
    assert all((out / name / "index.json").is_file() for name in sets)


def test_an_archive_that_is_another_one_is_refused_by_name(packages):
    (packages / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="emoji-datasource-google-16.0.0.tgz is not the file that npm published"):
        fetch(packages)


def test_without_npm_the_missing_file_is_named(packages, monkeypatch):
    (packages / "emojibase-data-17.0.0.tgz").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="emojibase-data-17.0.0.tgz is missing, and npm is not installed"):
        fetch(packages)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(RED, GREEN, "green and red"), (RED, RED, "red"), ((250, 205, 62), (90, 90, 250), "blue and yellow")],
)
def test_colours_are_named_without_the_page(tmp_path, left, right, expected):
    page = Image.new("RGB", (64, 64), "white")
    drawn = Image.open(io.BytesIO(png(left=left, right=right)))
    page.paste(drawn, mask=drawn)
    page.save(tmp_path / "picture.png")
    assert set(colours(tmp_path / "picture.png").split(" and ")) == set(expected.split(" and "))
