"""A loss or a gradient that is not finite on one rank: no rank updates anything, and training goes on as if the step
had not been."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_runs import hook_of, tiny_config

from pdfx.config import Config


def recipe(folder: Path, run: str, stage: str, **sections: dict) -> Config:
    train = {"output_dir": str(folder / run), "max_steps": 3, "resume": "never"} | sections.pop("train", {})
    lora = {"r": 2, "alpha": 4, "dropout": 0.2, "targets": ["q_proj", "v_proj"]}
    return tiny_config(folder, "qwen2_vl", stage, train=train, model={"lora": lora}, **sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("non-finite")


def spoil(trainer, where: str, steps: set[int]) -> None:
    """Make rank 1's embeddings (``loss``), or the gradients that reach its decoder (``gradient``), infinite in some
    steps."""
    if dist.get_rank() != 1:
        return
    embed = trainer.stepper.embed

    def broken(part, step, with_graph):
        output = embed(part, step, with_graph)
        if step in steps and part.number == 0:
            if where == "loss":
                output.paths = output.paths * math.inf
            elif with_graph:
                output.paths.register_hook(lambda gradient: gradient * math.inf)
        return output

    trainer.stepper.embed = broken


def everything(trainer) -> dict[str, torch.Tensor]:
    """This rank's parameters, its shards of masters and moments, and what the objective keeps."""
    found = {f"kept {number}": tensor for number, tensor in enumerate(trainer.objective.kept_tensors())}
    for name, parameter in trainer.engine.module.named_parameters():
        if parameter.requires_grad:
            found[name] = getattr(parameter, "ds_tensor", parameter)
    for number, (master, moments) in enumerate(trainer.engine.optimizer.optimizer.state.items()):
        found[f"master {number}"] = master
        found |= {f"{name} {number}": moment for name, moment in moments.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def step_over(config: Config, where: str) -> list[str]:
    """In a rank: three steps whose second is spoiled, beside the first and the third alone; the names of what
    differs."""
    from pdfx.distributed.world import join_world
    from pdfx.train.step import was_skipped
    from pdfx.train.trainer import Trainer

    trainers = [Trainer(config.model_copy(deep=True), join_world()) for _ in range(2)]
    spoiled, plain = trainers
    spoil(spoiled, where, {2})
    for trainer in trainers:
        trainer.stepper(next(trainer.loader), 1)
    before = everything(spoiled)
    metrics = spoiled.stepper(next(spoiled.loader), 2)
    assert was_skipped(metrics)
    assert math.isfinite(metrics["loss"]) == (where == "gradient")
    next(plain.loader)
    untouched = everything(spoiled)
    outcomes = [trainer.stepper(next(trainer.loader), 3) for trainer in trainers]
    after = [everything(trainer) for trainer in trainers]
    differing = [f"{name} in the skipped step" for name in before if not torch.equal(before[name], untouched[name])]
    differing += [f"{name} in the step after it" for name in before if not torch.equal(after[0][name], after[1][name])]
    differing += ["metrics"] if outcomes[0] != outcomes[1] else []
    moved = [name for name in before if not torch.equal(before[name], after[0][name])]
    assert len(moved) > len(before) / 2
    for trainer in trainers:
        trainer.close()
        trainer.engine.destroy()
    return differing


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("stage", "train"),
    [
        ("zero1", {"gradient_accumulation_steps": 2}),
        ("zero2", {"gradient_accumulation_steps": 2, "gradient_reduction": "step"}),
        ("zero2", {"bf16": True}),
        ("zero3", {"gradient_accumulation_steps": 2, "gradient_reduction": "step"}),
        ("zero3", {"gradient_accumulation_steps": 2, "gradient_reduction": "chunk"}),
        ("zero3", {}),
    ],
    ids=[
        "zero1",
        "zero2 reduced once",
        "zero2 bf16",
        "zero3 reduced once",
        "zero3 reduced by chunk",
        "zero3 in one pass",
    ],
)
def test_a_spoiled_step_leaves_parameters_optimiser_and_pending_gradients_untouched_on_all_ranks(
    folder, two_ranks, stage, train, where
):
    # What the objective keeps of a step whose gradient is spoiled only later is sound, and so stays; of one path it
    # keeps nothing that may differ.
    config = recipe(folder, "steps", stage, train=train | {"resume": "auto"})
    if where == "gradient":
        config.model.paths = 1
    assert two_ranks.run(step_over, config, where) == [[], []]


def train_spoiled(config: Config, spoiled_steps: list[set[int]]) -> str:
    """In a rank: the whole run. Step numbers in ``spoiled_steps[i]`` are spoiled after i roll-backs; how the run
    ended."""
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    steps = set(spoiled_steps[0])
    spoil(trainer, "loss", steps)
    guards = hook_of(trainer, "StepGuards")
    take_back = guards.take_back

    def next_spoils(step: int) -> bool:
        repeat = take_back(step)
        steps.clear()
        steps.update(spoiled_steps[guards.roll_backs])
        return repeat

    guards.take_back = next_spoils
    try:
        return "finished" if trainer.run(StopRequest()) else "stopped"
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return f"exit code {error.code}"
    finally:
        trainer.close()
        trainer.engine.destroy()


def records(folder: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]


def without_counts(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in ("skipped", "roll_backs")} for line in lines]


def saved_steps(folder: Path, run: str) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / run / "checkpoints").iterdir())


ROLLING = {"train": {"max_steps": 7, "save_steps": 2}, "guards": {"non_finite": {"in_a_row": 2, "roll_backs": 2}}}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_after_a_passing_fault_the_run_goes_back_and_ends_as_an_undisturbed_one_digit_for_digit(
    folder, two_ranks, stage
):
    whole, faulty = (recipe(folder, f"{run}-{stage}", stage, **ROLLING) for run in ("whole", "faulty"))
    assert two_ranks.run(train_spoiled, whole, [set()]) == ["finished", "finished"]
    assert two_ranks.run(train_spoiled, faulty, [{4, 5}, set()]) == ["finished", "finished"]
    assert [line["step"] for line in records(folder, f"faulty-{stage}")] == list(range(1, 8))
    assert without_counts(records(folder, f"faulty-{stage}")) == without_counts(records(folder, f"whole-{stage}"))
    assert records(folder, f"faulty-{stage}")[-1]["skipped"] == 2
    assert records(folder, f"faulty-{stage}")[-1]["roll_backs"] == 1


def test_a_stretch_that_fails_again_is_passed_over_and_the_samples_say_so(folder, two_ranks):
    config = recipe(folder, "stretch", "zero2", **ROLLING)
    # Back to step 2 twice: after steps 3 and 4, and after 3 and 4 of the repetition, whose samples are then left out.
    assert two_ranks.run(train_spoiled, config, [{3, 4}, {3, 4}, set()]) == ["finished", "finished"]
    last = records(folder, "stretch")[-1]
    assert last["step"] == 7
    assert last["samples"] == (7 + 2) * 4
    assert last["roll_backs"] == 2


def test_a_run_that_would_go_back_too_often_or_has_nothing_to_go_back_to_stops_on_all_ranks_with_the_cure(
    folder, two_ranks
):
    told, other = two_ranks.run(train_spoiled, recipe(folder, "often", "zero2", **ROLLING), [{3, 4}, {3, 4}, {3, 4}])
    assert "after 2 roll-backs" in told
    assert other == "exit code 2"
    told, other = two_ranks.run(train_spoiled, recipe(folder, "nowhere", "zero2", **ROLLING), [{1, 2}])
    assert "holds no whole checkpoint from before step 1 to go back to; lower train.save_steps" in told
    assert other == "exit code 2"


def test_a_save_that_meets_a_skipped_step_waits_for_the_next_one_and_a_run_may_begin_with_skipped_steps(
    folder, two_ranks
):
    settings = {
        "train": {"max_steps": 4, "save_steps": 2, "save_total_limit": 5},
        "guards": {"non_finite": {"in_a_row": 3}},
    }
    assert two_ranks.run(train_spoiled, recipe(folder, "waits", "zero2", **settings), [{2}]) == ["finished", "finished"]
    assert saved_steps(folder, "waits") == [3, 4]
    settings["train"] |= {"max_steps": 2, "save_steps": 5}
    assert two_ranks.run(train_spoiled, recipe(folder, "begins", "zero3", **settings), [{1, 2}]) == [
        "finished",
        "finished",
    ]
    assert saved_steps(folder, "begins") == [2]


def test_the_action_stop_ends_both_ranks_at_the_first_spoiled_step_and_names_it(folder, two_ranks):
    config = recipe(folder, "stop", "zero2", guards={"non_finite": {"action": "stop"}})
    told, other = two_ranks.run(train_spoiled, config, [{2}])
    assert told.startswith("The loss of step 2 is not finite")
    assert other == "exit code 2"
