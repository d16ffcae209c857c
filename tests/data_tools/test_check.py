import json
import os
import shutil

import numpy as np
import pytest
from tiny_shards import damage_image, make_shards

from data_tools.check import check_shards
from pdfx.data.schema import ShardEntry, fingerprint
from pdfx.errors import UserError


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_sound_shards_have_no_problems(shards, full):
    assert check_shards(shards, full) == []


@pytest.mark.parametrize("full", [False, True])
def test_every_problem_is_told_and_not_the_first_alone(shards, full):
    os.truncate(shards / "00000.tar", 5000)
    (shards / "00001.tar").unlink()
    np.save(shards / "00002.idx.npy", np.zeros(6, dtype=np.int64))
    (shards / "00009.tar").write_bytes(b"")
    problems = check_shards(shards, full)
    assert len(problems) == 4
    for name, words in (("00000.tar", "is truncated"), ("00001.tar", "is missing"), ("00002.idx.npy", "do not fit"), ("00009.tar", "is not listed")):
        assert sum(name in problem and words in problem for problem in problems) == 1


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
    assert sorted(problem.split("'")[1] for problem in problems if "cannot be used" in problem) == ["sample-003", "sample-007", "sample-021"]


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


def test_a_full_check_finds_offsets_of_another_shard(shards):
    offsets = np.load(shards / "00000.idx.npy")
    offsets[3] += 512
    np.save(shards / "00000.idx.npy", offsets)
    (problem,) = check_shards(shards, full=True)
    assert "00000.tar" in problem
    assert "not those of its samples" in problem


def test_a_full_check_finds_a_key_that_two_shards_hold(shards):
    shutil.copy(shards / "00000.tar", shards / "00003.tar")
    shutil.copy(shards / "00000.idx.npy", shards / "00003.idx.npy")
    index = json.loads((shards / "index.json").read_text())
    index["shards"].append(index["shards"][0] | {"name": "00003.tar"})
    index["samples"] += 10
    index["fingerprint"] = fingerprint([ShardEntry(**entry) for entry in index["shards"]])
    (shards / "index.json").write_text(json.dumps(index))
    assert check_shards(shards) == []
    problems = check_shards(shards, full=True)
    assert len(problems) == 10
    assert all("is there twice, in 00000.tar and in 00003.tar" in problem for problem in problems)


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
