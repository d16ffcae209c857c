"""A checkpoint counts only when it is whole, down to the last bit."""

import json
import os

import pytest
from checkpoint.made import flip, make_checkpoint

from pdfx.checkpoint.directory import (
    PARTIAL,
    REPLACED,
    checkpoint_paths,
    newest_whole,
    open_checkpoint,
    open_verified,
    remove_unfinished,
)
from pdfx.checkpoint.manifest import read_manifest, share_out
from pdfx.config.run_files import CHECKPOINTS, MANIFEST
from pdfx.errors import UserError

FILE = "parameters/rank-00000-of-00001.safetensors"


def test_the_newest_whole_checkpoint_is_found_and_the_others_are_told_with_the_reason(tmp_path):
    paths = {step: make_checkpoint(tmp_path, step) for step in range(1, 9)}
    (paths[8] / MANIFEST).unlink()
    flip(paths[7] / MANIFEST, (paths[7] / MANIFEST).read_text().index('"bytes": 100') + len('"bytes": 1'))
    (paths[6] / MANIFEST).write_text("{}")
    os.truncate(paths[5] / FILE, 99)
    (paths[4] / FILE).unlink()
    flip(paths[3] / FILE)
    (tmp_path / CHECKPOINTS / ("step-00000010" + PARTIAL)).mkdir()
    checkpoint, passed_over = newest_whole(tmp_path)
    assert checkpoint.step == 2
    assert [sentence.split("step-0000000")[1] for sentence in passed_over] == [
        f"8 is not a whole checkpoint: it has no readable {MANIFEST}.",
        f"7 is not a whole checkpoint: {MANIFEST} is damaged, because its content does not match its own checksum.",
        f"6 is not a whole checkpoint: it has no readable {MANIFEST}.",
        f"5 is not a whole checkpoint: {FILE} has 99 bytes instead of 100.",
        f"4 is not a whole checkpoint: {FILE} is missing.",
        f"3 is not a whole checkpoint: {FILE} is damaged: its content does not match its checksum.",
    ]


def test_sizes_alone_are_looked_at_where_nothing_is_to_be_read(tmp_path):
    path = make_checkpoint(tmp_path, 1)
    flip(path / FILE)
    assert open_checkpoint(path).step == 1
    with pytest.raises(UserError, match="does not match its checksum"):
        open_verified(path)


def test_several_problems_are_counted(tmp_path):
    path = make_checkpoint(tmp_path, 1)
    (path / FILE).unlink()
    (path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config.yaml is missing \(2 files in all\)"):
        open_checkpoint(path)


def test_a_manifest_of_another_version_is_told(tmp_path):
    path = make_checkpoint(tmp_path, 1)
    content = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(UserError, match="its format is version 1 and this pdfx reads version 2"):
        open_checkpoint(path)


def test_steps_are_ordered_as_numbers_and_what_is_no_checkpoint_is_left_out(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        make_checkpoint(tmp_path, step)
    (tmp_path / CHECKPOINTS / "step-00000007.copy").mkdir()
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-100000000", "step-99999999", "step-00000005"]


def test_what_killed_saves_left_is_removed_and_nothing_else(tmp_path):
    whole = make_checkpoint(tmp_path, 1)
    for suffix in (PARTIAL, REPLACED):
        make_checkpoint(tmp_path, 2).rename(tmp_path / CHECKPOINTS / f"step-00000002{suffix}")
    remove_unfinished(tmp_path)
    assert list((tmp_path / CHECKPOINTS).iterdir()) == [whole]


def test_ranks_share_the_files_out_by_bytes_and_leave_none_out(tmp_path):
    manifest = read_manifest(make_checkpoint(tmp_path, 1))
    assert sorted(name for share in share_out(manifest, 3) for name in share) == sorted(manifest.files)
    assert [len(share) for share in share_out(manifest, 2)] == [1, 1]
