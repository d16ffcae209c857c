"""The helper that runs ranks must itself tell failures and end."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import RankFailure, Ranks


def total(value: int) -> float:
    tensor = torch.tensor(float(value + dist.get_rank()))
    dist.all_reduce(tensor)
    return tensor.item()


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier()


def hang_on_rank_0() -> None:
    if dist.get_rank() == 0:
        time.sleep(1000)


def die_on_rank_0() -> None:
    if dist.get_rank() == 0:
        os._exit(7)


def test_ranks_run_many_functions_together_and_failures_tell_the_reason_and_where_the_others_waited():
    with Ranks(2) as ranks:
        assert ranks.run(total, 1) == [3.0, 3.0]
        assert ranks.run(total, 5) == [11.0, 11.0]
        processes = ranks.processes
        with pytest.raises(RankFailure, match=r"(?s)rank 0: .*barrier.*rank 1: .*the reason"):
            ranks.run(fail_on_rank_1)
        assert all(process.poll() is not None for process in processes)
        with pytest.raises(RankFailure, match=r"(?s)rank 0: still running.*hang_on_rank_0"):
            ranks.run(hang_on_rank_0, timeout=2)


def test_a_rank_that_dies_is_told_with_its_exit_code():
    with Ranks(1) as ranks, pytest.raises(RankFailure, match=r"rank 0: the process died with exit code 7"):
        ranks.run(die_on_rank_0)
