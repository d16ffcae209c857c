"""A build that is stopped at any moment resumes where it stopped, to the same bytes."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from tiny_builds import content, mixed_records

from data_tools.build.assembly import TooManyBadRecords
from data_tools.build.builder import BuildSettings, build, build_shards
from data_tools.build.settings import Encoding
from data_tools.sources.jsonl import JsonlSource
from pdfx.errors import UserError


@pytest.fixture
def small(tmp_path) -> tuple[JsonlSource, Path, BuildSettings]:
    records = mixed_records(tmp_path, 23, 4)
    return (
        JsonlSource(records),
        tmp_path / "images",
        BuildSettings(samples_per_shard=6, deduplicate=True, max_bad_share=0.2),
    )


def stop_at(operation: int, *arguments) -> int:
    """Builds in a process that ends, without any clean-up, before it changes the file system for the time of this
    number; gives its exit code, 9 if so."""

    def run() -> None:
        changes = 0

        def count(event: str, details: tuple) -> None:
            nonlocal changes
            opens_to_write = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
            changes += bool(opens_to_write) or event in (
                "os.rename",
                "os.remove",
                "os.rmdir",
                "os.mkdir",
                "os.truncate",
            )
            if changes == operation:
                os._exit(9)

        sys.addaudithook(count)
        build(*arguments)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.process
def test_a_build_that_ends_before_any_of_its_changes_to_files_goes_on_to_the_same_bytes(tmp_path, small):
    source, images, settings = small
    build(source, images, tmp_path / "undisturbed", settings)
    expected = content(tmp_path / "undisturbed")
    assert len(json.loads(expected["index.json"])["shards"]) == 4 and expected["quarantine.jsonl"].count(b"\n") == 4
    codes = []
    while not codes or codes[-1] == 9:
        out = tmp_path / str(len(codes))
        codes.append(stop_at(len(codes) + 1, source, images, out, settings))
        # Once more, in the clean-up after the first time.
        stop_at(3, source, images, out, settings)
        build(source, images, out, settings)
        assert content(out) == expected, f"stopped before change {len(codes)}"
    assert codes[-1] == 0 and len(codes) > 30


@pytest.mark.process
def test_finished_shards_are_not_built_again(tmp_path, small):
    source, images, settings = small
    assert stop_at(30, source, images, tmp_path / "out", settings) == 9
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) >= 2
    calls = []
    build(source, images, tmp_path / "out", settings, progress=lambda done, total: calls.append((done, total)))
    # The last one may have been moved to its place without being written down.
    finished = sorted(before)[:-1]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == before[name] for name in finished)
    assert calls[0][0] >= 6 * len(finished) and calls[-1] == (23, 23)


@pytest.mark.process
def test_a_line_of_the_journal_that_a_kill_cut_short_does_not_count(tmp_path, small):
    source, images, settings = small
    build(source, images, tmp_path / "undisturbed", settings)
    for cut in (1, 60, 150):
        out = tmp_path / str(cut)
        assert stop_at(30, source, images, out, settings) == 9
        journal = (out / "build.jsonl").read_bytes()
        assert journal.count(b"\n") > 2
        (out / "build.jsonl").write_bytes(journal[:-cut])
        build(source, images, out, settings)
        assert content(out) == content(tmp_path / "undisturbed")


def test_a_finished_build_says_so_and_is_left_alone(tmp_path, small):
    source, images, settings = small
    first = build(source, images, tmp_path / "out", settings)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = build(source, images, tmp_path / "out", settings)
    assert (first.was_finished, second.was_finished) == (False, True)
    assert (second.shards, second.samples, second.fingerprint, second.rejected) == (
        first.shards,
        first.samples,
        first.fingerprint,
        first.rejected,
    )
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"samples_per_shard": 5}, "settings.samples_per_shard is 5 and was 6"),
        ({"encoding": Encoding(resize=100)}, "settings.resize is 100 and was null"),
        ({"deduplicate": False}, "settings.deduplicate is false and was true"),
    ],
)
def test_another_setting_is_named_and_does_not_touch_what_is_there(tmp_path, small, change, sentence):
    source, images, settings = small
    out = tmp_path / "out"
    build(source, images, out, settings)
    before = content(out)
    other = BuildSettings(**{**vars(settings), **change})
    with pytest.raises(
        UserError, match=f"out is not an empty directory: it holds a finished build .*{sentence}.*--overwrite"
    ):
        build(source, images, out, other)
    (out / "index.json").unlink()
    lines = (out / "build.jsonl").read_bytes().splitlines(keepends=True)
    (out / "build.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UserError, match=f"holds a build that cannot be resumed like this .*{sentence}"):
        build(source, images, out, other)
    assert {
        name: data for name, data in content(out).items() if name not in ("index.json", "build.jsonl")
    }.items() <= before.items()


def test_a_changed_source_or_image_folder_is_named(tmp_path, small):
    source, images, settings = small
    build(source, images, tmp_path / "out", settings)
    with pytest.raises(UserError, match="images is .* and was"):
        build(source, tmp_path, tmp_path / "out", settings)
    with source.files[0].open("a") as stream:
        stream.write("\n")
    size = source.files[0].stat().st_size
    with pytest.raises(
        UserError, match=f'source.files is "records.jsonl: {size} bytes, .* and was "records.jsonl: {size - 1} bytes'
    ):
        build(source, images, tmp_path / "out", settings)


def edited(path: Path) -> None:
    """Another content of the same size, a second later than the file was."""
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1))


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("what", ["edited", "removed", "added", "record"])
def test_a_build_whose_pictures_or_records_changed_does_not_go_on(tmp_path, small, what, is_finished):
    source, images, settings = small
    out = tmp_path / "out"
    build(source, images, out, settings)
    if not is_finished:
        lines = (out / "build.jsonl").read_bytes().splitlines(keepends=True)
        (out / "build.jsonl").write_bytes(b"".join(lines[:3]))
    if what == "edited":
        edited(images / "1.png")
    elif what == "removed":
        (images / "1.png").unlink()
    elif what == "added":
        (images / "absent.png").write_bytes((images / "1.png").read_bytes())
    else:
        edited(source.files[0])
    named = {"edited": "1.png", "added": "absent.png"}.get(what, "")
    message = rf"A picture of the records 1 to \d+ .*{named}\); start over with --overwrite"
    message = message if what != "record" else r"source.files is .* and was .*--overwrite"
    with pytest.raises(UserError, match=message):
        build(source, images, out, settings)
    again = BuildSettings(**{**vars(settings), "overwrite": True, "max_bad_share": 1})
    assert not build(source, images, out, again).was_finished
    assert build(source, images, out, again.__class__(**{**vars(again), "overwrite": False})).was_finished


def test_overwriting_replaces_a_build_and_leaves_other_files_alone(tmp_path, small):
    source, images, settings = small
    out = tmp_path / "out"
    build(source, images, out, BuildSettings(samples_per_shard=2, max_bad_share=0.2))
    (out / "README").write_text("mine")
    build(source, images, out, BuildSettings(**{**vars(settings), "overwrite": True}))
    build(source, images, tmp_path / "fresh", settings)
    assert content(out) == {**content(tmp_path / "fresh"), "README": b"mine"}


def test_overwriting_is_refused_where_there_was_no_build(tmp_path, small):
    source, images, settings = small
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="is not an empty directory"):
        build(source, images, tmp_path / "out", BuildSettings(**{**vars(settings), "overwrite": True}))
    assert content(tmp_path / "out") == {"00000.tar": b"precious"}


def test_two_builds_of_one_directory_do_not_meet(tmp_path, small):
    source, images, settings = small
    met = []

    def second(done: int, _: int) -> None:
        if done == 3:
            with pytest.raises(UserError, match="Another process is building in"):
                build(source, images, tmp_path / "out", settings)
            met.append(done)

    build(source, images, tmp_path / "out", settings, progress=second)
    assert met == [3]


def test_damage_to_what_a_build_would_go_on_with_is_named(tmp_path, small):
    source, images, settings = small
    out = tmp_path / "out"
    with pytest.raises(TooManyBadRecords):
        build(source, images, out, BuildSettings(**{**vars(settings), "max_bad_share": 0.05}))
    journal = (out / "build.jsonl").read_bytes()
    assert journal.count(b"\n") > 1
    (out / "build.jsonl").write_bytes(journal.replace(b'"position":', b'"position"', 1))
    with pytest.raises(UserError, match="build.jsonl is damaged.*--overwrite"):
        build(source, images, out, settings)
    (out / "build.jsonl").write_bytes(journal)
    os.truncate(out / "00000.tar", 1000)
    with pytest.raises(UserError, match="00000.tar is truncated"):
        build(source, images, out, settings)


@pytest.mark.process
def test_shards_do_not_depend_on_the_number_of_workers(tmp_path):
    records = mixed_records(tmp_path, 60, 6)
    for workers in (1, 2, 3):
        settings = BuildSettings(samples_per_shard=7, deduplicate=True, max_bad_share=0.2, workers=workers)
        build(JsonlSource(records), tmp_path / "images", tmp_path / str(workers), settings)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    import resource

    records = mixed_records(tmp_path, 10, 2, width=200, height=100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"out cannot be written \(File too large\); make room"):
            build_shards(records, tmp_path / "images", tmp_path / "out", max_bad_share=0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build_shards(records, tmp_path / "images", tmp_path / "out", max_bad_share=0.2)
    build_shards(records, tmp_path / "images", tmp_path / "undisturbed", max_bad_share=0.2)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
