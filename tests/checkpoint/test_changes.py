"""What is verified of a checkpoint is what is read: a change of any of its files is noticed, or nothing reads it."""

import os
import shutil

import pytest
import torch
from checkpoint.made import make_checkpoint

from pdfx.checkpoint.directory import (
    BUFFERS,
    OBJECTIVE,
    PARAMETERS,
    PROBE,
    STATE,
    open_verified,
    remove_checkpoint,
    remove_unfinished,
)
from pdfx.checkpoint.manifest import Manifest, read_manifest, strays, write_manifest
from pdfx.checkpoint.parameters import MASTER, SavedParameters, part_file_name, parts_metadata
from pdfx.checkpoint.retention import Retention, prune
from pdfx.config.run_files import CHECKPOINTS, MANIFEST
from pdfx.errors import UserError
from pdfx.host.files import write_checksummed
from pdfx.host.tensor_files import Entry, write_tensors

PART = f"{PARAMETERS}/{part_file_name(1, 2)}"
FILES = [
    f"{PARAMETERS}/{part_file_name(0, 2)}",
    PART,
    STATE,
    OBJECTIVE,
    BUFFERS,
    f"{PROBE}/items.json",
    f"{PROBE}/0.0.png",
    "config.yaml",
    MANIFEST,
]
MEANWHILE = "changed while reading"


def part_bytes(path, rank: int, ranks: int, value: float) -> bytes:
    values = torch.full((6 // ranks,), value)
    write_tensors(
        path,
        [(Entry(f"{MASTER}/a", torch.float32, (6 // ranks,)), [values])],
        parts_metadata({"a": rank * 6 // ranks}, {"a": (6,)}),
    )
    return path.read_bytes()


@pytest.fixture
def checkpoint(tmp_path):
    parts = {
        f"{PARAMETERS}/{part_file_name(rank, 2)}": part_bytes(tmp_path / "part", rank, 2, float(rank))
        for rank in range(2)
    }
    others = {
        STATE: b'{"step": 1}',
        OBJECTIVE: b"objective",
        BUFFERS: b"buffers",
        f"{PROBE}/items.json": b"[]",
        f"{PROBE}/0.0.png": b"png",
    }
    made = tmp_path / "run" / CHECKPOINTS / "step-00000001"
    for folder in (PARAMETERS, "state", PROBE):
        (made / folder).mkdir(parents=True)
    contents = parts | others | {"config.yaml": b"model: {}"}
    write_manifest(made, Manifest(1, {name: write_checksummed(made / name, data) for name, data in contents.items()}))
    return made


def read(path, meanwhile=lambda: None) -> dict[str, bytes]:
    """All that a resume or a conversion reads."""
    found = open_verified(path)
    saved = SavedParameters(found.files(PARAMETERS))
    meanwhile()
    contents = {
        "a": saved.read(MASTER, "a").numpy().tobytes(),
        "probe": b"".join(file.read_bytes() for file in found.files(PROBE)),
    }
    contents |= {name: found.file(name).read_bytes() for name in (STATE, OBJECTIVE, BUFFERS, "config.yaml")}
    found.require_unchanged()
    return contents


def change(file, kind: str, elsewhere) -> None:
    if kind == "removed":
        file.unlink()
    elif kind == "replaced":
        file.with_name("new").write_bytes(bytes(file.stat().st_size))
        file.with_name("new").replace(file)
    elif kind == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif kind == "linked to another":
        elsewhere.write_bytes(bytes(file.stat().st_size))
        file.unlink()
        file.symlink_to(elsewhere)


@pytest.mark.parametrize("when", ["before", MEANWHILE])
@pytest.mark.parametrize("kind", ["removed", "replaced", "cut", "linked to another"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_the_manifest_says_is_noticed(checkpoint, tmp_path, name, kind, when):
    expected = read(checkpoint)

    def spoil() -> None:
        change(checkpoint / name, kind, tmp_path / "elsewhere")

    if when == MEANWHILE and name == MANIFEST:
        # It was read before, and is not read again.
        assert read(checkpoint, spoil) == expected
        return
    if when == "before":
        spoil()
    with pytest.raises((UserError, OSError), match="not a whole checkpoint|changed while|No such file|cut short"):
        read(checkpoint, spoil if when == MEANWHILE else lambda: None)


@pytest.mark.parametrize(
    "name",
    [
        f"{PARAMETERS}/{part_file_name(0, 1)}",
        f"{PARAMETERS}/{part_file_name(2, 3)}",
        "state/more.pt",
        f"{PROBE}/1.0.png",
        "stray",
    ],
)
def test_a_file_that_was_added_is_named_and_never_read(checkpoint, tmp_path, name):
    expected = read(checkpoint)
    (checkpoint / name).write_bytes(part_bytes(tmp_path / "part", 0, 1, 7.0))
    assert read(checkpoint) == expected
    assert strays(checkpoint, read_manifest(checkpoint)) == [name]


def test_a_file_that_is_a_link_to_its_own_content_is_harmless(checkpoint, tmp_path):
    expected = read(checkpoint)
    for name in FILES:
        (checkpoint / name).rename(tmp_path / "moved")
        shutil.copyfile(tmp_path / "moved", tmp_path / name.replace("/", "-"))
        (checkpoint / name).symlink_to(tmp_path / name.replace("/", "-"))
    assert read(checkpoint) == expected


@pytest.mark.parametrize(
    "name", ["../run.txt", "/etc/hostname", "state/../../x", "state//x", "./x", "", MANIFEST, "state/"]
)
def test_a_manifest_that_leads_elsewhere_is_refused(checkpoint, name):
    manifest = read_manifest(checkpoint)
    write_manifest(checkpoint, Manifest(1, manifest.files | {name: manifest.files[STATE]}))
    with pytest.raises(UserError, match="which is not the name of a file within it"):
        open_verified(checkpoint)


def test_what_the_manifest_does_not_list_is_not_read_even_under_a_known_name(checkpoint):
    manifest = read_manifest(checkpoint)
    write_manifest(checkpoint, Manifest(1, {name: record for name, record in manifest.files.items() if name != STATE}))
    with pytest.raises(UserError, match=f"{MANIFEST} does not list {STATE}"):
        open_verified(checkpoint).state()


def test_removing_a_link_to_a_checkpoint_leaves_what_it_points_to(tmp_path):
    kept = make_checkpoint(tmp_path / "elsewhere", 1)
    run = tmp_path / "run"
    for step in (2, 3):
        make_checkpoint(run, step)
    link = run / CHECKPOINTS / kept.name
    link.symlink_to(kept)
    told = prune(run, Retention(1), 3)
    assert told == [f"The older checkpoint {link} was a link: the link is removed, and {kept} stays as it is."]
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["step-00000003"]
    for suffix in (".partial", ".replaced"):
        (run / CHECKPOINTS / f"step-00000004{suffix}").symlink_to(kept)
    remove_unfinished(run)
    assert not list((run / CHECKPOINTS).glob("step-00000004*"))
    remove_checkpoint(run / CHECKPOINTS / "step-00000003")
    open_verified(kept)
