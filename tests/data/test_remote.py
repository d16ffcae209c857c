"""Reading shards from real servers: HTTP with ranges, and S3."""

import gc
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from itertools import islice

import fsspec
import pytest
import torch
from range_server import RangeServer
from tiny_shards import ByteProcessor, make_shards

from pdfx.config import DataSection
from pdfx.data import FILLER, ShardedDataset, TrainLoader, iterate_inputs
from pdfx.data.storage.base import Reading
from pdfx.errors import UserError

QUICK = Reading(retries=3, retry_seconds=0.001, timeout_seconds=20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def server(shards):
    with RangeServer(shards) as server:
        yield server


@pytest.fixture(scope="module")
def s3(shards):
    """A bucket with the shards on a real S3 server, reached by fsspec's own configuration."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "key", "secret": "secret"}
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    for path in shards.iterdir():
        client.upload_file(str(path), "bucket", f"sets/train/{path.name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", options)
        yield options["endpoint_url"]
    moto.stop()


@pytest.fixture
def memory(shards):
    fsspec.filesystem("memory").put(str(shards), "/kept", recursive=True)
    yield "memory://kept"
    fsspec.filesystem("memory").rm("/kept", recursive=True)


def keys(dataset) -> list[str]:
    return [sample.key for sample in dataset.read_many(range(len(dataset)))]


def batches(path, count=9, **options):
    data = DataSection(
        train=str(path), span_samples=4, window_spans=3, hard_negatives=1, **{"num_workers": 0, **options}
    )
    return list(islice(TrainLoader(data, ByteProcessor(), 0, 1, 2, 2, 5), count))


def assert_equal_batches(left, right):
    assert [batch.keys for batch in left] == [batch.keys for batch in right]
    for one, other in zip(left, right, strict=True):
        assert one.valid.all()
        assert torch.equal(one.target_ids, other.target_ids)
        for own, others in zip(one.chunks, other.chunks, strict=True):
            assert all(torch.equal(own.inputs[name], others.inputs[name]) for name in own.inputs)


@pytest.mark.parametrize("cached", [False, True])
def test_training_reads_the_same_batches_from_a_folder_over_http_from_s3_and_from_memory(
    shards, server, s3, memory, tmp_path, cached
):
    expected = batches(shards)
    options = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    for url in (server.url, "s3://bucket/sets/train", "s3://bucket/sets/train/", memory):
        assert_equal_batches(batches(url, **options), expected)


@pytest.mark.process
def test_workers_read_the_same_batches_over_http(shards, server):
    assert_equal_batches(batches(server.url, num_workers=2), batches(shards))


TRAINER = """
import sys
import threading
from itertools import islice
from tiny_shards import ByteProcessor
from pdfx.config import DataSection
from pdfx.data import TrainLoader

if __name__ == "__main__":
    data = DataSection(train=sys.argv[1], num_workers=2, span_samples=4, window_spans=3, hard_negatives=1)
    print(*[key for batch in islice(TrainLoader(data, ByteProcessor(), 0, 1, 2, 2, 5), 9) for key in batch.keys])
"""


@pytest.mark.process
def test_workers_read_from_s3_with_nothing_but_the_environments_credentials(shards, s3, tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FSSPEC_S3_ENDPOINT_URL": s3}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    done = subprocess.run(
        [sys.executable, tmp_path / "trainer.py", "s3://bucket/sets/train"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.split() == [key for batch in batches(shards) for key in batch.keys]


def test_samples_records_and_sides_equal_the_local_ones(shards, server):
    local, remote = ShardedDataset(shards), ShardedDataset(server.url)
    assert remote.path == server.url
    assert [(key, record.query.text) for key, record in remote.records()] == [
        (key, record.query.text) for key, record in local.records()
    ]
    for sides in (
        [data.read_items([3, 24, 0], "target") for data in (local, remote)],
        [[data.read_item(7, "target")] for data in (local, remote)],
    ):
        for own, others in zip(*sides, strict=True):
            assert own["text"] == others["text"]
            assert own["images"][0].tobytes() == others["images"][0].tobytes()
    with pytest.raises(IndexError):
        remote.read_many([25])


def test_evaluation_reads_the_same_inputs_over_http(shards, server):
    numbers = [3, 24, 0, FILLER, 7, FILLER]
    for side in ("query", "target"):
        local, remote = (
            list(iterate_inputs(ShardedDataset(path), numbers, side, ByteProcessor(), 4))
            for path in (shards, server.url)
        )
        assert len(local) == 2
        assert all(
            torch.equal(own.inputs[name], other.inputs[name])
            for own, other in zip(local, remote, strict=True)
            for name in own.inputs
        )


def test_a_sample_is_one_request_for_its_own_bytes_and_opening_downloads_no_tar(shards, server):
    dataset = ShardedDataset(server.url)
    assert server.sent["00000.tar"] == 1  # the byte that shows the size
    sizes = dataset.shards[0].offsets
    before = len(server.requests)
    dataset.read(3)
    assert server.requests[before:] == [("00000.tar", sizes[3], sizes[4] - 1)]


def test_a_query_string_stays_with_every_request_and_out_of_every_message(server):
    url = f"{server.url.replace('//', '//user:pass@')}/?signature=secret"
    dataset = ShardedDataset(url, reading=QUICK)
    assert keys(dataset) == [f"sample-{i:03d}" for i in range(25)]
    assert server.queries == {"signature=secret"}
    server.faults["00001.tar"] = [403]
    (error,) = dataset.read_many([13])
    assert "/00001.tar" in str(error)
    assert "secret" not in str(error) and "pass" not in str(error)
    with pytest.raises(UserError) as caught:
        ShardedDataset(url.replace("/?", "/nowhere?"), reading=QUICK)
    assert "secret" not in str(caught.value) and "pass" not in str(caught.value)


def test_headers_for_http_come_from_fsspecs_configuration(server, monkeypatch):
    monkeypatch.setitem(
        fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer token"}, "client_kwargs": {"trust_env": True}}
    )
    assert keys(ShardedDataset(server.url)) == [f"sample-{i:03d}" for i in range(25)]
    assert server.authorizations == {"Bearer token"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda folder: (folder / "index.json").unlink(),
            "no index.json at http://.*, so no finished shards; .*pdfx shards build",
        ),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json is damaged"),
        (lambda folder: (folder / "00001.tar").unlink(), "http://.*/00001.tar is missing"),
        (lambda folder: (folder / "00001.idx.npy").unlink(), "http://.*/00001.idx.npy is missing"),
        (lambda folder: os.truncate(folder / "00001.tar", 5000), "00001.tar is truncated: it has 5000 bytes"),
        (lambda folder: os.truncate(folder / "00001.tar", 0), "00001.tar is truncated: it has 0 bytes"),
    ],
)
def test_an_incomplete_upload_is_refused_when_it_is_opened_and_the_file_is_named(shards, tmp_path, change, message):
    shutil.copytree(shards, tmp_path / "copy")
    change(tmp_path / "copy")
    with RangeServer(tmp_path / "copy") as server, pytest.raises(UserError, match=message):
        ShardedDataset(server.url, reading=QUICK)


def test_a_missing_bucket_is_told(s3):
    with pytest.raises(UserError, match="There is no index.json at s3://nowhere/train"):
        ShardedDataset("s3://nowhere/train", reading=QUICK)


@pytest.mark.process
@pytest.mark.parametrize(
    "url, blocked, message",
    [
        (
            "s3://bucket/x",
            "s3fs",
            r"s3://bucket/x cannot be read without a package that is not installed \(Install s3fs.*\); 'pip install "
            r"pdfx\[remote\]'",
        ),
        (
            "http://host/x",
            "aiohttp",
            r"http://host/x cannot be read without a package that is not installed \(.*aiohttp.*\); 'pip install "
            r"pdfx\[remote\]'",
        ),
        ("nothing://host/x", "s3fs", "nothing://host/x cannot be opened: Protocol not known: nothing"),
    ],
)
def test_a_protocol_without_its_package_names_the_cure(url, blocked, message):
    code = f"import sys; sys.modules[{blocked!r}] = None\nfrom pdfx.data import ShardedDataset\nShardedDataset({url!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(f"pdfx.errors.UserError: {message}", last)


@pytest.mark.process
def test_reading_goes_on_after_pickling_and_on_both_sides_of_a_fork_without_a_lost_answer(server):
    reading = Reading(timeout_seconds=30)
    expected = [f"sample-{i:03d}" for i in range(25)]
    keys(ShardedDataset(server.url, reading=reading))  # dropped with its connections open
    dataset = ShardedDataset(server.url, reading=reading)
    assert keys(dataset) == expected
    assert keys(pickle.loads(pickle.dumps(dataset))) == expected
    child = os.fork()
    if child == 0:
        right = keys(dataset) == expected and dataset.storage.retries == 0
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert keys(dataset) == expected
    assert dataset.storage.retries == 0


@pytest.mark.parametrize("threads", [1, 8])
def test_a_process_has_as_many_requests_under_way_at_once_as_are_set_and_no_more(server, threads):
    dataset = ShardedDataset(server.url, reading=Reading(threads=threads))
    for shard in dataset.shards:
        _ = shard.offsets
    server.peak = 0
    # Each answer waits until so many requests have come; with fewer at once none would ever be answered.
    server.barrier = threading.Barrier(threads, timeout=60)
    assert [sample.key for sample in dataset.read_many(range(24))] == [f"sample-{i:03d}" for i in range(24)]
    assert server.peak == threads
