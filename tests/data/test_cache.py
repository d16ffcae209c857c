"""The cache of spans: its bound, its soundness, and that processes share it."""

import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from range_server import RangeServer
from tiny_shards import make_shards

from pdfx.config import DataSection
from pdfx.data import SampleError, ShardedDataset
from pdfx.data.storage.base import Reading
from pdfx.data.storage.cache import SpanCache
from pdfx.data.training_sets import open_training_sets
from pdfx.errors import UserError

FINGERPRINT = "ab" * 32
BOUNDS = np.array([1000, 1300, 1700, 2000])
KEYS = [f"sample-{i:03d}" for i in range(25)]


def span(number: int) -> bytes:
    return np.random.default_rng(number).bytes(1000)


ENTRY_BYTES = 1000 + 4 * 3


def cache_of(folder, entries: float = 100, fingerprint: str = FINGERPRINT) -> SpanCache:
    """A cache in which so many entries may be in use."""
    return SpanCache(folder, int(entries * ENTRY_BYTES / 0.9) + 1, fingerprint, 3)


def entries(folder) -> list[Path]:
    return sorted(Path(folder).glob("*/*.span"))


def total(folder) -> int:
    return sum(map(size_of, Path(folder).rglob("*.span*")))


def size_of(path: Path) -> int:
    """An empty file in the making may go at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def never() -> bytes:
    raise AssertionError("there is an entry, so nothing is to be fetched")


def fill(cache: SpanCache, number: int) -> None:
    cache.read(str(number), BOUNDS, 0, lambda: span(number))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def test_a_span_is_fetched_once_and_gives_each_of_its_samples(tmp_path):
    cache = cache_of(tmp_path)
    fill(cache, 1)
    for row, (start, stop) in enumerate(((0, 300), (300, 700), (700, 1000))):
        assert cache.read("1", BOUNDS, row, never) == span(1)[start:stop]
    assert pickle.loads(pickle.dumps(cache)).read("1", BOUNDS, 2, never) == span(1)[700:]


def test_data_sets_do_not_share_entries(tmp_path):
    fill(cache_of(tmp_path), 1)
    assert cache_of(tmp_path, fingerprint="cd" * 32).read("1", BOUNDS, 0, lambda: span(2)) == span(2)[:300]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 700),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(
            path.read_bytes()[:50] + bytes([path.read_bytes()[50] ^ 1]) + path.read_bytes()[51:]
        ),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
    ],
)
def test_a_damaged_or_truncated_entry_is_found_out_and_fetched_again(tmp_path, damage):
    cache, fetched = cache_of(tmp_path), []
    fill(cache, 1)
    (path,) = entries(tmp_path)
    damage(path)

    def fetch() -> bytes:
        fetched.append(1)
        return span(1)

    assert cache.read("1", BOUNDS, 0, fetch) == span(1)[:300]
    assert cache.read("1", BOUNDS, 0, never) == span(1)[:300]
    assert fetched == [1]


def test_the_bound_holds_and_the_least_recently_read_go_first(tmp_path):
    cache = cache_of(tmp_path, entries=10)
    for number in range(10):
        fill(cache, number)
        age(tmp_path / FINGERPRINT[:32] / f"{number}.span", 10_000 - number)
    cache.read("0", BOUNDS, 1, never)  # the oldest is read again
    for number in range(10, 13):
        fill(cache, number)
        assert total(tmp_path) <= cache.most_bytes
    left = {int(path.stem) for path in entries(tmp_path)}
    assert {0, 9, 10, 11, 12} <= left
    assert 1 not in left


def test_files_that_are_not_the_caches_are_never_removed(tmp_path):
    for name in ("own.span", "letters/photo.span", "ab" * 16 + "/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
        age(tmp_path / name, 10**6)
    cache = cache_of(tmp_path, entries=3)
    for number in range(12):
        fill(cache, number)
    assert all(
        (tmp_path / name).stat().st_size == 5000
        for name in ("own.span", "letters/photo.span", "ab" * 16 + "/notes.txt")
    )
    assert 1 <= len(list((tmp_path / FINGERPRINT[:32]).glob("*.span"))) <= 3


def test_the_folder_is_listed_only_where_an_entry_would_not_fit(tmp_path, monkeypatch):
    cache, listed = cache_of(tmp_path, entries=50), []
    original = os.scandir
    fill(cache, 0)
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or original(path))
    for number in range(50):
        fill(cache, number)
        cache.read(str(number), BOUNDS, 1, never)
    assert listed == []
    for number in range(50, 100):
        fill(cache, number)
    assert 1 <= len(listed) <= 12  # a tenth of the bound, 5 entries, is freed each time


def test_a_span_that_would_fill_the_bound_alone_is_not_kept(tmp_path):
    cache = cache_of(tmp_path, entries=0.5)
    assert cache.read("1", BOUNDS, 0, lambda: span(1)) == span(1)[:300]
    assert entries(tmp_path) == []


def kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.process
@pytest.mark.parametrize("moment", ["while it fetches", "between writing and renaming"])
def test_a_process_killed_on_the_way_leaves_no_half_entry_and_nobody_waiting(tmp_path, moment):
    cache = cache_of(tmp_path, entries=3)
    child = os.fork()
    if child == 0:
        if moment == "between writing and renaming":
            Path.replace = kill_itself
            fill(cache, 1)
        cache.read("1", BOUNDS, 0, kill_itself)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert entries(tmp_path) == []
    (part,) = tmp_path.glob("*/*.part")
    assert part.stat().st_size == (ENTRY_BYTES if moment == "between writing and renaming" else 0)
    for number in range(2, 7):  # making room removes what was left behind
        fill(cache, number)
    assert list(tmp_path.glob("*/*.part")) == []
    assert cache.read("1", BOUNDS, 0, lambda: span(1)) == span(1)[:300]
    assert cache.read("1", BOUNDS, 2, never) == span(1)[700:]
    assert total(tmp_path) <= cache.most_bytes


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    def fail() -> bytes:
        raise SampleError("unreachable")

    cache = cache_of(tmp_path)
    with pytest.raises(SampleError):
        cache.read("1", BOUNDS, 0, fail)
    assert list(tmp_path.glob("*/*")) == []
    assert cache.read("1", BOUNDS, 0, lambda: span(1)) == span(1)[:300]


def test_a_disk_without_room_costs_the_cache_and_not_the_run(tmp_path, capfd):
    """A limit of this process on the size of files fails writes as a full disk does."""
    cache = cache_of(tmp_path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        for number in range(2):
            assert cache.read(str(number), BOUNDS, 0, lambda number=number: span(number)) == span(number)[:300]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.glob("*/*")) == []
    assert capfd.readouterr().err.count("cannot be written to") == 1


def test_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="data.cache_dir"):
        cache_of(tmp_path / "file")


def read_all(url: str, folder: str, gigabytes: float, seed: int) -> None:
    dataset = ShardedDataset(
        url, reading=Reading(cache_dir=folder, cache_gigabytes=gigabytes, span_samples=4, threads=4)
    )
    for _ in range(3):
        order = np.random.default_rng(seed).permutation(25).tolist()
        if [sample.key for sample in dataset.read_many(order)] != [KEYS[i] for i in order]:
            sys.exit(1)


@pytest.mark.process
@pytest.mark.parametrize("spans", [2.5, 20])
def test_two_processes_share_a_cache_within_its_bound(shards, tmp_path, spans):
    """With room for all, each span is fetched by one of them alone; with room for few, the bound holds at every
    moment."""
    with RangeServer(shards) as server:
        largest = max(int(shard.offsets[4] - shard.offsets[0]) for shard in ShardedDataset(shards).shards)
        most = spans * (largest + 16) / 0.9
        context = multiprocessing.get_context("forkserver")
        processes = [
            context.Process(target=read_all, args=(server.url, str(tmp_path), most / 1e9, seed)) for seed in range(2)
        ]
        for process in processes:
            process.start()
        peak = 0
        while any(process.is_alive() for process in processes):
            with open(tmp_path / "bytes", "ab") as lock:  # entries come and go under this lock
                fcntl.flock(lock, fcntl.LOCK_EX)
                peak = max(peak, total(tmp_path))
            processes[0].join(0.01)
        assert [process.exitcode for process in processes] == [0, 0]
        assert 0 < peak <= most
        fetched = [request for request in server.requests if request[0].endswith(".tar") and request[2] > 0]
    if spans == 20:
        assert len(fetched) == len(set(fetched)) == 3 + 3 + 2


def test_later_runs_read_what_earlier_ones_fetched_and_local_folders_use_no_cache(shards, tmp_path):
    reading = Reading(cache_dir=str(tmp_path / "cache"), cache_gigabytes=1, span_samples=4)
    with RangeServer(shards) as server:
        for _ in range(2):
            assert [sample.key for sample in ShardedDataset(server.url, reading=reading).read_many(range(25))] == KEYS
        spans = [request for request in server.requests if request[0].endswith(".tar") and request[2] > 0]
    assert len(spans) == len(set(spans)) == 8
    local = tmp_path / "local"
    ShardedDataset(shards, reading=Reading(cache_dir=str(local))).read(0)
    assert not local.exists()


def test_a_cache_that_cannot_hold_the_mixing_window_is_refused(shards, tmp_path):
    with RangeServer(shards) as server:
        data = {"train": server.url, "cache_dir": str(tmp_path), "span_samples": 4, "window_spans": 3}
        with pytest.raises(UserError, match=r"data.cache_gigabytes is 1e-05, and windows of 3 x 4 samples .* raise it"):
            open_training_sets(DataSection(**data, cache_gigabytes=1e-5))
        open_training_sets(DataSection(**data, cache_gigabytes=1e-3))
