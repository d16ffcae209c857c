"""What goes wrong on the way to shards behind a URL: repeated where that can help, told in one sentence, never read
wrongly."""

import fsspec
import pytest
from range_server import RangeServer
from tiny_shards import make_shards

from pdfx.data import SampleError, ShardedDataset
from pdfx.data.storage.base import Reading
from pdfx.data.storage.remote_errors import is_transient
from pdfx.errors import UserError

QUICK = Reading(retries=3, retry_seconds=0.001, timeout_seconds=20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def server(shards):
    with RangeServer(shards) as server:
        yield server


@pytest.mark.parametrize("fault", [503, 500, 429, 408, "early"])
def test_a_passing_fault_is_tried_again_and_counted(server, fault):
    dataset = ShardedDataset(server.url, reading=QUICK)
    before = server.asked("00001.tar")
    server.faults["00001.tar"] = [fault, fault]
    server.faults["00001.idx.npy"] = [fault]
    assert dataset.read(13).key == "sample-013"
    assert dataset.storage.retries == 3
    assert server.asked("00001.tar") - before == 3


def test_broken_connections_are_made_anew(server):
    dataset = ShardedDataset(server.url, reading=QUICK)
    before = server.asked("00001.tar")
    server.faults["00001.tar"] = ["reset"] * 4
    assert dataset.read(13).key == "sample-013"
    assert server.asked("00001.tar") - before == 5
    assert (
        2 <= dataset.storage.retries <= 4
    )  # aiohttp itself repeats, at once, what was lost on a connection that it had kept open


def test_a_server_that_does_not_answer_is_given_up_and_asked_again(server):
    dataset = ShardedDataset(server.url, reading=Reading(retries=1, retry_seconds=0, timeout_seconds=0.5))
    _ = dataset.shards[1].offsets
    server.faults["00001.tar"] = ["stall"]
    assert dataset.read(13).key == "sample-013"
    server.faults["00001.tar"] = ["stall", "stall"]
    with pytest.raises(SampleError, match="00001.tar: no answer came within 0.5 seconds, tried 2 times") as caught:
        dataset.read(13)
    assert caught.value.kind == "unreachable"


def test_a_lasting_fault_is_told_after_the_set_number_of_attempts_with_address_and_reason(server):
    dataset = ShardedDataset(server.url, reading=QUICK)
    before = server.asked("00001.tar")
    server.faults["00001.tar"] = [503, ...]
    good, bad = dataset.read_many([3, 13])
    assert good.key == "sample-003"
    assert isinstance(bad, SampleError)
    assert bad.kind == "unreachable"
    assert (
        f"cannot be read from {server.url}/00001.tar: its server answered with status 503, Service Unavailable, "
        "tried 4 times" in str(bad)
    )
    assert server.asked("00001.tar") - before == 4
    server.faults["index.json"] = [503, ...]
    with pytest.raises(
        UserError, match="/index.json cannot be read: .* status 503, Service Unavailable, tried 4 times"
    ):
        ShardedDataset(server.url, reading=QUICK)


@pytest.mark.parametrize(
    "status, reason",
    [(403, "status 403, Forbidden"), (404, "it is not there"), (401, "status 401"), (400, "status 400")],
)
def test_what_will_not_pass_is_told_at_once(server, status, reason):
    dataset = ShardedDataset(server.url, reading=QUICK)
    _ = dataset.shards[1].offsets
    before = server.asked("00001.tar")
    server.faults["00001.tar"] = [status, ...]
    with pytest.raises(SampleError, match=reason):
        dataset.read(13)
    assert server.asked("00001.tar") - before == 1
    assert dataset.storage.retries == 0


def test_a_host_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:9/x/index.json cannot be read: .*onnect.*tried 2 times\."
    ) as caught:
        ShardedDataset("http://127.0.0.1:9/x", reading=Reading(retries=1, retry_seconds=0))
    assert "\n" not in str(caught.value)


def test_a_server_without_ranges_is_found_out_before_a_tar_is_downloaded(tmp_path):
    folder = make_shards(tmp_path, samples=3)
    with open(folder / "00000.tar", "ab") as stream:
        stream.truncate(64 << 20)
    with RangeServer(folder, ranges=False) as server:
        with pytest.raises(
            UserError, match="00000.tar cannot be examined: its server sends whole files where a part is asked for"
        ):
            ShardedDataset(server.url, reading=QUICK)
        assert server.sent["00000.tar"] < 32 << 20


def test_a_server_that_loses_its_ranges_later_gives_no_wrong_bytes(server):
    dataset = ShardedDataset(server.url, reading=QUICK)
    _ = dataset.shards[1].offsets
    server.ranges = False
    with pytest.raises(SampleError, match="its server sends whole files"):
        dataset.read(13)


def test_a_smaller_range_than_was_asked_for_is_found_out(server):
    dataset = ShardedDataset(server.url, reading=QUICK)
    server.faults["00001.tar"] = ["less"]
    with pytest.raises(SampleError, match=r"its server sent bytes bytes \d+-\d+/\d+ where \d+-\d+ were asked for"):
        dataset.read(13)


def test_a_server_that_tells_no_sizes_is_refused_in_one_sentence(shards):
    with (
        RangeServer(shards, sizes=False) as server,
        pytest.raises(UserError, match="00000.tar cannot be examined: its server does not tell how large it is"),
    ):
        ShardedDataset(server.url, reading=QUICK)


def test_faults_of_s3_are_repeated_by_us_alone_and_told_with_their_status(shards, monkeypatch):
    with RangeServer(shards.parent) as server:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server.url, "key": "key", "secret": "secret"})
        dataset = ShardedDataset(f"s3://{shards.name}", reading=QUICK)
        _ = dataset.shards[1].offsets
        for faults, attempts in (([503, 503], 3), ([500], 2), (["early"], 2), (["reset"] * 2, 3)):
            before, retries = server.asked("00001.tar"), dataset.storage.retries
            server.faults["00001.tar"] = faults
            assert dataset.read(13).key == "sample-013"
            assert server.asked("00001.tar") - before == attempts
            assert dataset.storage.retries - retries <= attempts - 1
        for status, attempts, reason in (
            (503, 4, "status 503, .*, tried 4 times"),
            (403, 1, "status 403, Forbidden"),
            (404, 1, "it is not there"),
        ):
            before = server.asked("00001.tar")
            server.faults["00001.tar"] = [status, ...]
            with pytest.raises(SampleError, match=f"s3://{shards.name}/00001.tar: .*{reason}"):
                dataset.read(13)
            assert server.asked("00001.tar") - before == attempts
        server.faults["00001.tar"] = []
        server.ranges = False
        with pytest.raises(SampleError, match=r"\d+ bytes came where \d+ were asked for"):
            dataset.read(13)


def test_errors_of_many_makers_are_told_apart():
    class ClientPayloadError(Exception):
        pass

    assert is_transient(ClientPayloadError())
    assert is_transient(TimeoutError())
    assert is_transient(ConnectionResetError())
    assert not is_transient(PermissionError())
    assert not is_transient(ValueError("Invalid URL"))
