import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from multiprocessing.context import ForkServerProcess

import pytest
import torch
from tiny_shards import ByteProcessor, damage_image, make_shards

from pdfx.config import DataSection
from pdfx.data import CanonicalOrder, ShardedDataset, TrainLoader
from pdfx.data.workers import run_ahead
from pdfx.errors import UserError

SEED = 5


def data_workers() -> list[ForkServerProcess]:
    """This process's children that read data; ranks that several tests share may be among the others."""
    return [child for child in multiprocessing.active_children() if isinstance(child, ForkServerProcess)]


@pytest.fixture(autouse=True)
def no_workers_of_other_tests():
    """A loader in the traceback of an expected error lives until the garbage collector finds it."""
    gc.collect()
    assert data_workers() == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def loader(
    shards, rank=0, world_size=1, batch_pairs=2, chunks=2, state=None, processor=None, seed=SEED, **options
) -> TrainLoader:
    settings = {"num_workers": 0, "span_samples": 4, "window_spans": 3, "hard_negatives": 1, **options}
    return TrainLoader(
        DataSection(train=str(shards), **settings),
        processor or ByteProcessor(),
        rank,
        world_size,
        batch_pairs,
        chunks,
        seed,
        state,
    )


def steps(shards, count, world_size=1, **options) -> list[str]:
    """The keys that all ranks together read in ``count`` steps."""
    ranks = [
        [batch.keys for batch in islice(loader(shards, rank, world_size, **options), count)]
        for rank in range(world_size)
    ]
    return [key for step in zip(*ranks, strict=True) for keys in step for key in keys]


def assert_equal_batches(left, right):
    assert (left.pairs, left.negatives, left.keys, left.problems, left.truncated) == (
        right.pairs,
        right.negatives,
        right.keys,
        right.problems,
        right.truncated,
    )
    for name in ("target_ids", "negative_ids", "valid", "negative_valid"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    for one, other in zip(left.chunks, right.chunks, strict=True):
        assert torch.equal(one.slots, other.slots)
        assert one.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(shards, num_workers):
    expected = list(islice(loader(shards), 9))
    for left, right in zip(islice(loader(shards, num_workers=num_workers), 9), expected, strict=True):
        assert_equal_batches(left, right)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_together_read_the_canonical_order(shards, world_size):
    order = CanonicalOrder([10, 10, 5], SEED, 4, 3)
    assert steps(shards, 5, world_size) == [
        f"sample-{order.sample(position):03d}" for position in range(5 * 4 * world_size)
    ]


def test_batches_carry_what_the_samples_hold(shards):
    dataset = ShardedDataset(shards)
    batch = next(loader(shards))
    samples = [dataset.read(int(key.removeprefix("sample-"))) for key in batch.keys]
    assert batch.target_ids.tolist() == [sample.target_id for sample in samples]
    assert batch.negative_valid[:, 0].tolist() == [bool(sample.negatives) for sample in samples]
    first = batch.chunks[0].inputs["input_ids"][0]
    assert bytes(first[first > 0].tolist()).decode() == "q" + samples[0].query["text"]


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_reads_on_with_identical_batches(shards, num_workers):
    whole = list(islice(loader(shards), 8))
    begun = loader(shards, num_workers=num_workers)
    for _ in range(3):
        next(begun)
    state = json.loads(json.dumps(begun.state_dict()))
    assert state["samples"] == 12  # batches that workers hold ready are not counted
    for left, right in zip(islice(loader(shards, num_workers=num_workers, state=state), 5), whole[3:], strict=True):
        assert_equal_batches(left, right)


def test_a_resume_with_another_world_and_batch_size_continues_the_same_sequence(shards):
    ranks = [loader(shards, rank, 2, batch_pairs=2, chunks=1) for rank in range(2)]
    first = [key for _ in range(4) for rank in ranks for key in next(rank).keys]
    states = [rank.state_dict() for rank in ranks]
    assert states[0] == states[1]
    rest = steps(shards, 4, 3, batch_pairs=1, chunks=1, state=states[0])
    assert first + rest == steps(shards, 28, 1, batch_pairs=1, chunks=1)


def test_a_changed_data_folder_is_refused_and_both_fingerprints_are_named(shards, tmp_path):
    state = loader(shards).state_dict()
    (saved,) = state["data_sets"]
    other = make_shards(tmp_path, samples=24)
    with pytest.raises(UserError, match="changed since the checkpoint") as caught:
        loader(other, state=state)
    assert saved["fingerprint"][:16] in str(caught.value)
    assert ShardedDataset(other).fingerprint[:16] in str(caught.value)


@pytest.mark.parametrize(
    "option, key",
    [("seed", "train.seed"), ("span_samples", "data.span_samples"), ("window_spans", "data.window_spans")],
)
def test_a_setting_that_would_change_the_order_is_refused_on_resume(shards, option, key):
    state = loader(shards).state_dict()
    with pytest.raises(UserError, match=f"{key} is 9 and the checkpoint was made with"):
        loader(shards, state=state, **{option: 9})


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_sample_is_skipped_counted_and_named_and_past_the_share_the_run_stops(tmp_path, num_workers):
    shards = make_shards(tmp_path)
    for sample in (3, 17):
        damage_image(shards, sample)
    train = loader(shards, batch_pairs=5, chunks=1, num_workers=num_workers, max_corrupt_share=0.05)
    clean = steps(shards, 5, batch_pairs=5, chunks=1)
    keys, problems = [], []
    with pytest.raises(UserError, match="2 of the .* samples read so far could not be used") as caught:
        for batch in islice(train, 5):
            keys += batch.keys
            problems += [problem.sentence for problem in batch.problems]
            assert (~batch.valid).sum() == len(batch.problems)
            assert [key for key, valid in zip(batch.keys, batch.valid, strict=True) if not valid] == [
                key for key in batch.keys if key in ("sample-003", "sample-017")
            ]
            train.guard.add(batch.pairs, len(batch.problems), problems)
    assert keys == clean[: len(keys)]
    assert sorted(problem.split("'")[1] for problem in problems) == ["sample-003", "sample-017"]
    assert "sample-003" in str(caught.value)
    assert "sample-017" in str(caught.value)
    assert train.state_dict()["corrupt"] == 2


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_that_appears_during_a_run_is_one_sentence(tmp_path, num_workers):
    shards = make_shards(tmp_path)
    train = loader(shards, num_workers=num_workers)
    for path in shards.glob("*.idx.npy"):
        path.write_bytes(bytes(300))
    with pytest.raises(UserError, match=r"^The offsets .*idx\.npy cannot be read") as caught:
        for _ in range(20):
            next(train)
    assert "\n" not in str(caught.value)


SIGNALLED = """
import json, signal, sys
import psutil
from tiny_shards import ByteProcessor
from pdfx.config import DataSection
from pdfx.data import TrainLoader

if __name__ == "__main__":
    data = DataSection(train=sys.argv[1], num_workers=1, prefetch_batches=1)
    train = TrainLoader(data, ByteProcessor(), 0, 1, 2, 1, 0)
    keys = [next(train).keys]
    # The server that workers are forked from is among them.
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            process.send_signal(number)
    ended = psutil.wait_procs(processes, timeout=0.5)[0]
    print(json.dumps([len(processes), len(ended), keys + [next(train).keys for _ in range(6)]]))
"""


@pytest.mark.process
def test_signals_to_the_whole_job_leave_the_workers_reading(shards, tmp_path):
    # In a process of its own: here another test may have started the server, which then hears signals.
    (tmp_path / "trainer.py").write_text(SIGNALLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, tmp_path / "trainer.py", shards], stdout=subprocess.PIPE, env=environment, check=True
    ).stdout
    processes, ended, keys = json.loads(told)
    assert processes > 1
    assert ended == 0
    alone = TrainLoader(DataSection(train=str(shards), num_workers=0), ByteProcessor(), 0, 1, 2, 1, 0)
    assert keys == [batch.keys for batch in islice(alone, 7)]


@pytest.mark.process
def test_a_killed_worker_is_one_sentence_with_a_cure(shards):
    train = loader(shards, num_workers=1, prefetch_batches=1)
    next(train)
    (worker,) = data_workers()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="A data worker was killed.*data.num_workers"):
        for _ in range(10):
            next(train)


class Unreachable:
    def __call__(self, request: int):
        raise ConnectionResetError("the storage hung up")


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_job_is_not_taken_for_the_death_of_a_worker(num_workers):
    with pytest.raises(ConnectionResetError, match="the storage hung up"):
        next(run_ahead(Unreachable(), range(3), num_workers, prefetch=1, seed=0))


@pytest.mark.process
def test_workers_end_with_their_loader(shards):
    train = loader(shards, num_workers=2)
    next(train)
    workers = data_workers()
    assert len(workers) == 2
    del train
    assert not any(worker.is_alive() for worker in workers)


TRAINER = """
import multiprocessing, sys, time
from tiny_shards import ByteProcessor
from pdfx.config import DataSection
from pdfx.data import TrainLoader

if __name__ == "__main__":
    train = TrainLoader(DataSection(train=sys.argv[1], num_workers=2), ByteProcessor(), 0, 1, 2, 1, 0)
    next(train)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.process
def test_workers_end_with_a_trainer_that_was_killed(shards, tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py", shards], stdout=subprocess.PIPE, env=environment
    ) as trainer:
        workers = trainer.stdout.readline().split()
        assert len(workers) == 2
        trainer.kill()
        # The pipe ends when the last process that holds it has ended; the test's time limit ends a wait in vain.
        assert trainer.stdout.read() == b""


def test_a_processor_that_cannot_be_sent_to_workers_is_told(shards):
    with pytest.raises(UserError, match="cannot be sent to data workers.*data.num_workers=0"):
        loader(shards, num_workers=1, processor=lambda items, sides: ByteProcessor()(items, sides))


@pytest.mark.process
def test_the_global_random_state_of_the_trainer_is_left_alone(shards):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        next(loader(shards, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_an_epoch_goes_on_into_the_next(shards):
    train = loader(shards, batch_pairs=60, chunks=1)
    assert train.epoch_samples == 25
    keys = next(train).keys
    assert sorted(keys[:25]) == sorted(keys[25:50]) == [f"sample-{i:03d}" for i in range(25)]
