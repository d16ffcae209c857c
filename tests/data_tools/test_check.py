import json
import os
import re
import shutil

import numpy as np
import pytest
from range_server import RangeServer
from tiny_shards import damage_image, make_shards, write_records

from data_tools.build.builder import build_shards
from data_tools.inspect.check import check_shards
from pdfx.data.schema import ShardEntry, fingerprint
from pdfx.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("built"))


@pytest.fixture
def shards(built, tmp_path):
    """A copy to damage."""
    return shutil.copytree(built, tmp_path / "shards")


@pytest.mark.parametrize("full", [False, True])
def test_sound_shards_have_no_problems(shards, full):
    assert check_shards(shards, full) == []


def cut(path, size: int) -> None:
    os.truncate(path, size)


def overwrite(path, place: int | bytes, data: bytes) -> None:
    content = path.read_bytes()
    start = place if isinstance(place, int) else content.index(place)
    path.write_bytes(content[:start] + data + content[start + len(data) :])


def change_json(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_entry(shards, **values) -> None:
    """Change the first shard's entry and let the index be whole in itself."""
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0] |= values
    index["samples"] = sum(entry["samples"] for entry in index["shards"])
    index["fingerprint"] = fingerprint([ShardEntry(**entry) for entry in index["shards"]])
    change_json(shards / "index.json", **index)


def shift_offset(shards) -> None:
    offsets = np.load(shards / "00000.idx.npy")
    offsets[3] += 512
    np.save(shards / "00000.idx.npy", offsets)


DAMAGES = {
    "a missing tar": (lambda s: (s / "00001.tar").unlink(), "00001.tar is missing"),
    "a cut tar": (lambda s: cut(s / "00000.tar", 5000), "00000.tar is truncated"),
    "a tar that grew": (lambda s: cut(s / "00000.tar", 1 << 20), "00000.tar is longer than it should be"),
    "missing offsets": (lambda s: (s / "00001.idx.npy").unlink(), "00001.idx.npy is missing"),
    "cut offsets": (lambda s: cut(s / "00001.idx.npy", 30), "00001.idx.npy are truncated"),
    "offsets of nothing": (
        lambda s: np.save(s / "00002.idx.npy", np.zeros(6, dtype=np.int64)),
        "00002.idx.npy do not fit",
    ),
    "offsets of another type": (lambda s: np.save(s / "00002.idx.npy", np.arange(6.0)), "00002.idx.npy do not fit"),
    "pickled offsets": (
        lambda s: np.save(s / "00002.idx.npy", np.array([print] * 60), allow_pickle=True),
        "00002.idx.npy cannot be read",
    ),
    "missing statistics": (lambda s: (s / "00001_stats.json").unlink(), "00001_stats.json are missing"),
    "cut statistics": (lambda s: cut(s / "00001_stats.json", 30), "00001_stats.json are not valid JSON"),
    "statistics without a count": (
        lambda s: (s / "00001_stats.json").write_text('{"bytes": 3}'),
        "00001_stats.json are damaged",
    ),
    "statistics of another shard": (
        lambda s: shutil.copy(s / "00000_stats.json", s / "00002_stats.json"),
        "00002_stats.json do not fit",
    ),
    "an unlisted shard": (lambda s: (s / "00009.tar").write_bytes(b""), "00009.tar is not listed"),
    "a damaged index": (lambda s: cut(s / "index.json", 100), "index.json is damaged"),
    "an index of another version": (lambda s: change_json(s / "index.json", version=7), "index.json has version 7"),
    "an index that does not add up": (lambda s: change_json(s / "index.json", samples=26), "'samples' is not the sum"),
    "an index that was changed": (
        lambda s: change_json(s / "index.json", fingerprint="0" * 64),
        "'fingerprint' does not fit",
    ),
    "an unfinished build": (lambda s: (s / ".build").mkdir(), "holds an unfinished build"),
    "an unfinished split": (lambda s: (s / ".unfinished").mkdir(), "a split or a merge that was stopped"),
}
"""What a quick check finds, with words of its sentence."""

HIDDEN_DAMAGES = {
    "a changed byte of a picture": (
        lambda s: damage_image(s, 7),
        ["00000.tar has another SHA-256", "'sample-007' .* the image 'target.0.png' cannot be used"],
    ),
    "a changed letter of a text": (
        lambda s: overwrite(s / "00001.tar", b"query 13", b"query 31"),
        ["00001.tar has another SHA-256"],
    ),
    "a record that is no JSON": (
        lambda s: overwrite(s / "00001.tar", b'{"key":"sample-013"', b"?"),
        ["00001.tar has another", r"'sample-013' \(number 3\)"],
    ),
    "a name of an image that is not there": (
        lambda s: overwrite(s / "00001.tar", b'["target.0.png"]', b'["target.1.png"]'),
        [
            "00001.tar has another SHA-256",
            r"sample 'sample-010' \(number 0\) cannot be used: the image 'target.1.png' is missing",
        ],
    ),
    "a header of zeros": (
        lambda s: overwrite(s / "00002.tar", b"sample-021.json", bytes(512)),
        ["00002.tar has another SHA-256", "breaks off in or after its sample number 0", "sample number 1 "],
    ),
    "a checksum of another tar": (lambda s: change_entry(s, sha256="0" * 64), ["00000.tar has another SHA-256"]),
    "an offset inside a sample": (shift_offset, ["offsets of the shard .*00000.tar are not those of its samples"]),
    "counts of other samples": (
        lambda s: change_json(s / "00001_stats.json", query_characters=1),
        [r"00001.tar are not those .*\(query_characters\)"],
    ),
    "a count of queries that are there": (
        lambda s: change_json(s / "index.json", targets_only=3),
        ["says that 3 samples have no query, and 0 have none"],
    ),
}
"""What only a full check finds."""


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_check_finds(shards, damage, full):
    injure, words = DAMAGES[damage]
    injure(shards)
    problems = check_shards(shards, full)
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize("damage", HIDDEN_DAMAGES)
def test_a_full_check_alone_finds(shards, damage):
    injure, patterns = HIDDEN_DAMAGES[damage]
    injure(shards)
    assert check_shards(shards) == []
    problems = check_shards(shards, full=True)
    assert all(any(re.search(pattern, problem) for problem in problems) for pattern in patterns), problems
    assert all(problem.endswith(".") and "\n" not in problem for problem in problems)


@pytest.mark.parametrize("full", [False, True])
def test_every_problem_is_told_and_not_the_first_alone(shards, full):
    chosen = (
        "a cut tar",
        "a missing tar",
        "offsets of nothing",
        "an unlisted shard",
        "missing statistics",
        "an unfinished build",
    )
    for damage in chosen:
        DAMAGES[damage][0](shards)
    problems = check_shards(shards, full)
    assert len(problems) == len(chosen)
    assert all(any(DAMAGES[damage][1] in problem for problem in problems) for damage in chosen)


def test_a_directory_without_an_index_is_a_problem(shards):
    (shards / "index.json").unlink()
    (problem,) = check_shards(shards)
    assert "no index.json" in problem
    assert "pdfx shards build" in problem


def test_a_directory_that_is_not_there_is_a_mistake_and_no_problem(tmp_path):
    with pytest.raises(UserError, match="no directory of shards at .*nowhere"):
        check_shards(tmp_path / "nowhere")


def test_a_full_check_names_every_damaged_picture_and_the_checksum(shards):
    for sample in (3, 7, 21):
        damage_image(shards, sample)
    assert check_shards(shards) == []
    problems = check_shards(shards, full=True)
    assert [problem for problem in problems if "SHA-256" in problem and "00001" in problem] == []
    assert sum("SHA-256" in problem for problem in problems) == 2
    assert sorted(problem.split("'")[1] for problem in problems if "cannot be used" in problem) == [
        "sample-003",
        "sample-007",
        "sample-021",
    ]


def test_a_full_check_finds_a_tar_cut_inside_and_padded_to_its_size(shards):
    path = shards / "00000.tar"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)
    assert check_shards(shards) == []
    problems = check_shards(shards, full=True)
    assert any("00000.tar has another SHA-256" in problem for problem in problems)
    assert all("00000.tar" in problem for problem in problems)
    assert len(problems) > 1


def test_a_full_check_finds_a_key_that_two_shards_hold(shards):
    shutil.copy(shards / "00000.tar", shards / "00003.tar")
    shutil.copy(shards / "00000.idx.npy", shards / "00003.idx.npy")
    shutil.copy(shards / "00000_stats.json", shards / "00003_stats.json")
    index = json.loads((shards / "index.json").read_text())
    index["shards"].append(index["shards"][0] | {"name": "00003.tar"})
    index["samples"] += 10
    index["fingerprint"] = fingerprint([ShardEntry(**entry) for entry in index["shards"]])
    (shards / "index.json").write_text(json.dumps(index))
    assert check_shards(shards) == []
    problems = check_shards(shards, full=True)
    assert len(problems) == 10
    assert all("is there twice, in 00000.tar and in 00003.tar" in problem for problem in problems)


def test_a_full_check_finds_candidates_that_no_sample_has_as_its_target(tmp_path):
    named = {"a": ["a", "b", "c"], "b": ["a", "nobody"]}
    pairs = [
        {"query": {"text": name}, "target": {"text": name}, "target_id": name, "candidates": candidates}
        for name, candidates in named.items()
    ]
    build_shards(
        write_records(tmp_path, [*pairs, {"target": {"text": "c"}, "target_id": "c"}]), tmp_path, tmp_path / "shards", 2
    )
    own, absent = check_shards(tmp_path / "shards", full=True)
    assert "sample '000000002' (number 1) cannot be used: its candidates lack its own target" in own
    assert "No sample has the target of 1 of the 4 identities" in absent


def test_a_url_that_cannot_be_reached_is_a_mistake_and_one_without_an_index_a_problem(tmp_path):
    with RangeServer(tmp_path) as server:
        (problem,) = check_shards(server.url)
        assert "There is no index.json at http" in problem
        server.faults["index.json"] = [403]
        with pytest.raises(UserError, match="cannot be checked, since they cannot be reached: .*403"):
            check_shards(server.url)


@pytest.mark.parametrize("full", [False, True])
def test_shards_behind_a_url_are_checked_like_local_ones(shards, full):
    url = shards.as_uri()
    assert check_shards(url, full) == []
    for damage in ("a missing tar", "offsets of nothing", "missing statistics"):
        DAMAGES[damage][0](shards)
    damage_image(shards, 7)
    expected = check_shards(shards, full)
    # The two kinds of storage word their reasons differently.
    assert [problem.partition(":")[0] for problem in check_shards(url, full)] == [
        problem.replace(str(shards), url).partition(":")[0] for problem in expected
    ]


@pytest.mark.process
def test_problems_do_not_depend_on_the_number_of_processes(shards):
    damage_image(shards, 3)
    damage_image(shards, 24)
    shutil.copy(shards / "00000.tar", shards / "00001.tar")
    problems = check_shards(shards, full=True)
    assert len(problems) > 12
    assert check_shards(shards, full=True, workers=2) == problems


def test_progress_ends_with_everything(shards):
    calls = []
    check_shards(shards, full=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (25, 25)
