"""A directory of shards that changes: while it is used nothing of it mixes with what was there, and what was changed
before is found by a check."""

import os
import pickle
import shutil

import pytest
from tiny_shards import damage_image, make_shards

from data_tools.build.builder import build_shards
from data_tools.inspect.check import check_shards
from pdfx.data import SampleError, ShardedDataset
from pdfx.errors import UserError

KINDS = ["added", "removed", "replaced", "linked", "touched", "overwritten"]
FILES = ["00000.tar", "00000.idx.npy", "00000_stats.json", "index.json"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("changes") / "one", samples=20)


@pytest.fixture(scope="module")
def other(built, tmp_path_factory):
    """Shards of the same names and sizes with other samples."""
    shards, folder = built, tmp_path_factory.mktemp("changes") / "other"
    text = (shards.parent / "records.jsonl").read_text().replace('"query ', '"Query ')
    folder.mkdir()
    (folder / "records.jsonl").write_text(text)
    build_shards(folder / "records.jsonl", shards.parent / "images", folder / "shards", 10)
    assert all((folder / "shards" / name).stat().st_size == (shards / name).stat().st_size for name in FILES)
    return folder / "shards"


def change(folder, name: str, kind: str, other) -> None:
    file = folder / name
    if kind == "added":
        shutil.copyfile(other / name, folder / f"7{name}")
    elif kind == "removed":
        file.unlink()
    elif kind == "replaced":
        shutil.copyfile(other / name, folder / "new")
        (folder / "new").replace(file)
    elif kind == "linked":
        shutil.copyfile(file, folder.parent / name)
        file.unlink()
        file.symlink_to(folder.parent / name)
    elif kind == "touched":
        os.utime(file, ns=(1, 1))
    elif kind == "overwritten":
        file.write_bytes((other / name).read_bytes())


def texts(dataset) -> list[str]:
    return [sample.query["text"] for sample in dataset.read_many(range(len(dataset)))]


@pytest.mark.parametrize("opened", ["not yet", "before"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_old_and_new_samples_never_mix(built, other, tmp_path, name, kind, opened):
    shards = shutil.copytree(built, tmp_path / "shards")
    dataset = ShardedDataset(shards)
    expected = [f"query {i}" for i in range(20)]
    if opened == "before":
        assert texts(dataset) == expected
    change(shards, name, kind, other)
    # In this process, and in a worker that opens the files by itself.
    for reader in (dataset, pickle.loads(pickle.dumps(dataset))):
        try:
            assert texts(reader) == expected
        except (UserError, SampleError, AttributeError) as error:
            assert kind in ("removed", "replaced", "overwritten") and name != FILES[2]
            if kind != "removed":
                assert str(shards / name) in str(error) and "changed while it was in use" in str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_was_changed_before_is_found_by_a_check(built, other, tmp_path, name, kind):
    shards = shutil.copytree(built, tmp_path / "shards")
    change(shards, name, kind, other)
    problems = check_shards(shards, full=True)
    same = name in FILES[1:3] and kind in ("replaced", "overwritten") or (name == FILES[3] and kind == "added")
    assert bool(problems) == (kind not in ("linked", "touched") and not same), problems


def test_a_picture_damaged_during_use_ends_the_run_with_the_shard_and_not_a_few_samples_in_quarantine(built, tmp_path):
    shards = shutil.copytree(built, tmp_path / "shards")
    dataset = ShardedDataset(shards)
    assert texts(dataset)
    damage_image(shards, 3)
    with pytest.raises(UserError, match="00000.tar changed while it was in use"):
        dataset.read(3)
