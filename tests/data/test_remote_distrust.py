"""Servers are not taken at their word: bodies are bounded, files stay the ones that were seen first, and secrets go to
no other host."""

import os
import pickle
import shutil

import fsspec
import pytest
from peak_memory import begin, peak
from range_server import RangeServer
from tiny_shards import make_shards

from pdfx.data import SampleError, ShardedDataset
from pdfx.data.storage.base import Reading
from pdfx.errors import UserError

QUICK = Reading(retries=1, retry_seconds=0.001, timeout_seconds=20)
SPARE = 1 << 28


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path / "data")


@pytest.fixture
def server(shards):
    with RangeServer(shards) as server:
        yield server


@pytest.fixture(params=["http", "s3"])
def place(request, server, shards, monkeypatch):
    """The URL of the server's folder in both protocols."""
    server.folder = shards.parent
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server.url, "key": "key", "secret": "secret"})
    return f"{server.url}/shards" if request.param == "http" else "s3://shards"


@pytest.mark.parametrize("name", ["index.json", "00000.idx.npy", "00000.tar"])
def test_an_endless_body_is_given_up_as_soon_as_it_is_longer_than_what_was_asked_for(server, place, name):
    dataset = ShardedDataset(place, reading=QUICK)
    server.faults[name] = ["endless", ...]
    begin()
    before = peak()
    with pytest.raises((UserError, SampleError), match=r"cannot be read.*: \d+ bytes came where \d+ were asked for"):
        error = ShardedDataset(place, reading=QUICK) if name == "index.json" else dataset.read(0)
        raise error
    assert peak() - before < SPARE
    assert dataset.storage.retries == 0


@pytest.mark.parametrize("name", ["index.json", "00000.idx.npy", "00000.tar"])
def test_what_is_compressed_on_its_way_is_refused_unread(server, name):
    dataset = ShardedDataset(server.url, reading=QUICK)
    server.faults[name] = ["gzip", ...]
    with pytest.raises((UserError, SampleError), match="its server compresses what it sends"):
        ShardedDataset(server.url, reading=QUICK)
        dataset.read(0)


def replace(shards, name):
    """By other bytes, as many."""
    data = (shards / name).read_bytes()
    (shards / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("travels", [False, True])
@pytest.mark.parametrize("name", ["00000.tar", "00000.idx.npy"])
def test_a_file_that_is_replaced_by_one_of_the_same_size_ends_the_reading_and_is_named(server, shards, name, travels):
    server.etags = True
    dataset = ShardedDataset(server.url, reading=QUICK)
    requests = len(server.requests)
    if travels:
        dataset = pickle.loads(pickle.dumps(dataset))
    replace(shards, name)
    with pytest.raises(
        UserError,
        match=f"{server.url}/{name} was replaced while it was in use .its ETag was .* and is .*give the same "
        "command again",
    ):
        dataset.read_many([3])
    assert len(server.requests) <= requests + 2
    if name == "00000.tar":
        assert ShardedDataset(server.url, reading=QUICK).read(3).key == "sample-003"


def test_a_changed_total_is_noticed_and_an_unchanged_file_is_not(server):
    dataset = ShardedDataset(server.url, reading=QUICK)
    assert dataset.read(3).key == "sample-003"
    server.etags = True
    assert dataset.read(4).key == "sample-004"  # what is told later is compared from then on
    server.faults["00000.tar"] = ["total"]
    with pytest.raises(UserError, match=r"00000.tar was replaced .*its size was \d+ and is \d+"):
        dataset.read(5)


def test_an_object_of_s3_that_is_replaced_is_noticed(shards, tmp_path):
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
    client.create_bucket(Bucket="replaced")
    for path in shards.iterdir():
        client.upload_file(str(path), "replaced", path.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", options)
        dataset = ShardedDataset("s3://replaced", reading=QUICK)
        assert dataset.read(3).key == "sample-003"
        replace(shards, "00000.tar")
        client.upload_file(str(shards / "00000.tar"), "replaced", "00000.tar")
        with pytest.raises(UserError, match="s3://replaced/00000.tar was replaced while it was in use .its ETag was"):
            dataset.read(4)
    moto.stop()


SECRETS = {"X-Token": "secret", "Authorization": "Bearer secret", "Cookie": "session=secret"}


def secrets_in(headers):
    return [value for request in headers for value in request.values() if "secret" in value or "Basic" in value]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("kind", ["headers", "session", "password", "cookies"])
def test_secrets_do_not_follow_to_another_host(server, shards, monkeypatch, kind, host):
    options = {
        "headers": {"headers": SECRETS},
        "session": {"client_kwargs": {"headers": SECRETS}},
        "cookies": {"client_kwargs": {"cookies": {"a": "secret"}}},
    }
    monkeypatch.setitem(fsspec.config.conf, "http", options.get(kind, {}))
    with RangeServer(shards) as first:
        first.redirect = server.url.replace("127.0.0.1", host)
        url = first.url.replace("//", "//user:secret@") if kind == "password" else first.url
        assert ShardedDataset(url, reading=QUICK).read(3).key == "sample-003"
        # The first host is the one that they were given for.
        assert len(secrets_in(first.headers)) >= len(first.headers)
    assert server.headers and secrets_in(server.headers) == []


def test_secrets_stay_on_a_redirect_within_the_host(server, shards, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"X-Token": "secret"}})
    shutil.copytree(shards, shards / "there")
    server.redirect = f"{server.url}/there"
    assert ShardedDataset(server.url, reading=QUICK).read(3).key == "sample-003"
    assert len(secrets_in(server.headers)) == len(server.headers)


@pytest.mark.parametrize("target", ["ftp://host/x", "file:///etc", "http://127.0.0.1:1/x"])
def test_a_redirect_that_leads_nowhere_is_told(server, target):
    server.redirect = target
    with pytest.raises(UserError, match="redirects to what is not HTTP|onnect"):
        ShardedDataset(server.url, reading=QUICK)
    server.redirect = server.url
    with pytest.raises(UserError, match="redirects more than 10 times"):
        ShardedDataset(server.url, reading=QUICK)


def test_a_pipe_behind_a_file_url_does_not_block(shards):
    (shards / "index.json").unlink()
    os.mkfifo(shards / "index.json")
    with pytest.raises(UserError, match="index.json cannot be read: it is not a plain file"):
        ShardedDataset(shards.as_uri(), reading=QUICK)
