"""What two real ranks tell one another beside collectives, and what they find where they differ."""

import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import RankFailure, Ranks
from tiny_runs import tiny_config

from pdfx.config import Config


def exchange() -> list:
    """In a rank: signs, a failure that both claim, and an ordered departure, rank 0 last."""
    from pdfx.distributed.world import join_world
    from pdfx.faults.heartbeats import Failure, Lifeline, Sign

    world = join_world()
    lifeline = Lifeline(world, 10.0)
    assert lifeline.failure() is None
    lifeline.give(Sign(1, 5 + world.rank, 2, "embed a chunk", False, "here"))
    world.barrier()
    steps = [sign.step for sign in lifeline.final_signs()]
    claimed = lifeline.claim(Failure(world.rank, "error", 1))
    known = lifeline.failure().rank
    if world.rank == 1:
        time.sleep(0.5)
    before = time.time()
    lifeline.depart()
    return [steps, claimed, known, time.time() if world.rank == 0 else before]


def test_signs_reach_every_rank_and_only_one_failure_counts(two_ranks):
    (first_steps, *first_claim, first_left), (second_steps, *second_claim, second_left) = two_ranks.run(exchange)
    assert first_steps == second_steps == [5, 6]
    assert sorted([first_claim[0], second_claim[0]]) == [False, True]
    assert first_claim[1] == second_claim[1] == [first_claim[0], second_claim[0]].index(True)
    assert first_left >= second_left


def fail_while_the_watchdog_waits_to_tell(folder: Path) -> None:
    """In a rank: rank 0's watchdog has claimed the end of the job and waits for rank 1, which does not leave, when rank
    0's main thread fails as well."""
    from pdfx.config.train_sections import GuardsSection
    from pdfx.distributed.world import join_world
    from pdfx.faults.heartbeats import Lifeline
    from pdfx.faults.progress import Progress
    from pdfx.faults.shutdown import settle
    from pdfx.faults.watchdog import Watchdog

    lifeline = Lifeline(join_world(), 10.0)
    if dist.get_rank() == 1:
        return
    sys.stderr = (folder / "log").open("w", encoding="utf-8")
    watchdog = Watchdog(GuardsSection(), Progress(), folder, 0, lifeline, lambda: "Another run took the directory.")
    while lifeline.failure() is None:
        time.sleep(0.01)
    watchdog.stand_down()
    settle(RuntimeError("gloo: connection closed by peer"), lifeline, watchdog, time.time())


def test_what_the_watchdog_has_to_tell_is_told_although_the_main_thread_fails_meanwhile(tmp_path):
    with Ranks(2) as ranks, pytest.raises(RankFailure, match="rank 0: the process died with exit code 76"):
        ranks.run(fail_while_the_watchdog_waits_to_tell, tmp_path)
    assert (tmp_path / "log").read_text() == "Another run took the directory.\n"


def compare(change: str | None) -> str:
    """In a rank: the comparison after a step, with something changed on rank 1."""
    from pdfx.distributed.agreement import require_agreement, state_of_step
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError

    module = torch.nn.Linear(3, 3)
    torch.nn.init.ones_(module.weight)
    torch.nn.init.zeros_(module.bias)
    state = {
        "step": 9,
        "position": {"samples": 4},
        "metrics": {"loss": 0.1 + 0.2},
        "module": module,
        "kept": [],
        "turn": 3,
    }
    if dist.get_rank() == 1:
        if change == "parameters":
            with torch.no_grad():
                module.bias[1] = 1e-30
        elif change is not None:
            state[change] = {"step": 10, "position": {"samples": 5}, "metrics": {"loss": 0.3}}[change]
    try:
        require_agreement(join_world(), state_of_step(**state), "after step 9")
    except UserError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("step", "the step"),
        ("position", "the position in the data"),
        ("metrics", "the metrics"),
        ("parameters", "the parameters"),
    ],
)
def test_a_rank_out_of_step_is_found_by_all_and_named_with_what_differs(two_ranks, change, name):
    assert two_ranks.run(compare, None) == ["agreed", "agreed"]
    told = two_ranks.run(compare, change)
    assert told[0] == told[1]
    assert f"out of step after step 9: {name} is " in told[0]
    assert "on rank 1 (" in told[0]


def train_out_of_step(config: Config) -> str:
    """In a rank: a run in which rank 1 loses its place in the data."""
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    if dist.get_rank() == 1:
        next(trainer.loader)
    try:
        return "finished" if trainer.run(StopRequest()) else "stopped"
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return f"exit code {error.code}"
    finally:
        trainer.close()
        trainer.engine.destroy()


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_run_compares_its_ranks_every_few_steps_and_stops_where_one_lost_its_place(tmp_path, two_ranks, stage):
    config = tiny_config(Path(tmp_path), "qwen2_vl", stage, train={"max_steps": 5}, guards={"agreement_steps": 2})
    told, other = two_ranks.run(train_out_of_step, config)
    assert "The ranks are out of step after step 2: the position in the data" in told
    assert other == "exit code 2"
