"""A rank that fails in the middle of a step leaves at once, though reductions are pending."""

from pathlib import Path

import pytest
import torch.distributed as dist
from distributed.ranks import RankFailure, Ranks
from tiny_runs import tiny_config

from pdfx.config import Config


class BrokenMemory(Exception):
    """Stands for whatever may go wrong in a backward pass, above all want of memory."""


def step_that_breaks(config: Config) -> None:
    """In a rank: rank 1 fails in the backward pass of its second chunk."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == 2:
            raise BrokenMemory

    if dist.get_rank() == 1:
        trainer.engine.module.embedder.decoder.norm.register_full_backward_hook(fail)
    trainer.train_step()


def test_a_rank_that_fails_between_two_chunks_does_not_wait_for_the_reduction_of_the_others(tmp_path):
    train = {"gradient_accumulation_steps": 3, "gradient_reduction": "step", "output_dir": str(tmp_path / "run")}
    config = tiny_config(Path(tmp_path), "qwen2_vl", "zero3", train=train)
    with Ranks(2) as ranks, pytest.raises(RankFailure) as failure:
        ranks.run(step_that_breaks, config, timeout=60)
    # The other rank waits for it; a rank that waited itself would be shown with its stack instead.
    assert "BrokenMemory" in str(failure.value).split("rank 1:")[1]
    assert "rank 0: still running" in str(failure.value)
