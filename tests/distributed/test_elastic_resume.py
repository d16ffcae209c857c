"""A run goes on with other numbers of ranks and other stages of ZeRO as if nothing had changed."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from distributed.ranks import Ranks
from tiny_runs import hook_of, tiny_config

from pdfx.checkpoint.directory import OBJECTIVE, newest_whole
from pdfx.checkpoint.parameters import MASTER, SavedParameters
from pdfx.config import Config

STEPS, PAIRS = 6, 8
# As in test_update_equality.py: sums over ranks in another order differ by about 1e-7 of a gradient, which an epsilon
# of 1e-3 keeps from being blown up.
TRAIN = {
    "max_steps": STEPS,
    "adam_epsilon": 1e-3,
    "weight_decay": 0.1,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
    "save_steps": 100,
}
# An update is at most learning_rate times (gradient noise of 1e-7 over epsilon 1e-3), 1e-6 per step, and the steps add
# up; measured: below 1e-6.
TOLERANCE = 1e-5
LORA = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj", "down_proj"]}
MODELS = {"lora": {"lora": LORA, "fusion": "softmax"}, "full": {"lora": None, "train_vision": True}}


@pytest.fixture(scope="module")
def worlds(two_ranks):
    with Ranks(1) as one, Ranks(4) as four:
        yield {1: one, 2: two_ranks, 4: four}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elastic")


def recipe(
    folder: Path, run: str, kind: str, stage: str, ranks: int, diversity: str = "orthogonality", **train
) -> Config:
    """The same global batch on any number of ranks, in two chunks where a rank has more than two pairs of it."""
    own = PAIRS // ranks
    shape = {"per_device_train_batch_size": min(own, 2), "gradient_accumulation_steps": own // min(own, 2)}
    train = TRAIN | shape | {"output_dir": str(folder / run), "resume_elastic": True} | train
    objective = {
        "temperature": 0.2,
        "learn_temperature": True,
        "diversity": diversity,
        "mutual_information": {"bound": "vclub", "predictor": "network", "hidden": 16},
    }
    model = MODELS[kind] | {"prefix": {"length": 3, "learning_rate": 2e-2}}
    return tiny_config(
        folder, "qwen2_vl", stage, model=model, objective=objective, data={"hard_negatives": 1}, train=train
    )


def train_until(config: Config, step: int) -> tuple[list[list[str]], dict[str, torch.Tensor]]:
    """In a rank: the run up to a step; the keys of this rank's samples per step, and the parameters, gathered."""
    import deepspeed

    from pdfx.distributed.world import join_world
    from pdfx.train.hooks import Hook
    from pdfx.train.trainer import Trainer

    class StopAt:
        asked = property(lambda self: trainer.step >= step)

    trainer, keys = Trainer(config, join_world()), []

    class NoteKeys(Hook):
        def batch_ready(self, run, batch):
            keys.append(batch.keys)

    trainer.hooks.append(NoteKeys())
    trainer.run(StopAt())
    parameters = {}
    for name, parameter in trainer.engine.module.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter]):
                parameters[name] = parameter.detach().float().clone()
    trainer.close()
    trainer.engine.destroy()
    return keys, parameters


def sequence(results: list) -> list[list[str]]:
    """Per step the keys of all ranks' samples, in order."""
    return [[key for own in step for key in own] for step in zip(*(keys for keys, _ in results), strict=True)]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", list(MODELS))
def test_two_ranks_then_one_then_four_and_zero3_then_zero2_then_zero3_train_as_the_run_that_never_changed(
    folder, worlds, kind
):
    unchanged = worlds[2].run(train_until, recipe(folder, f"unchanged-{kind}", kind, "zero3", 2), STEPS, timeout=240)
    changed = []
    for ranks, stage, until in ((2, "zero3", 2), (1, "zero2", 4), (4, "zero3", 6)):
        results = worlds[ranks].run(
            train_until, recipe(folder, f"changed-{kind}", kind, stage, ranks), until, timeout=240
        )
        changed += sequence(results)
    assert changed == sequence(unchanged)
    expected = unchanged[0][1]
    for name, value in results[0][1].items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    runs = [metrics(folder / f"{run}-{kind}") for run in ("changed", "unchanged")]
    assert [record["step"] for record in runs[0]] == list(range(1, STEPS + 1))
    for own, other in zip(*runs, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert own["samples"] == other["samples"] and own["learning_rate"] == other["learning_rate"]


def save_again(config: Config) -> list[str]:
    """In a rank: take a checkpoint up and save it at once; what was told about the change."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    hook_of(trainer, "Saving").save(trainer)
    trainer.say(*trainer.saver.finish())
    trainer.close()
    trainer.engine.destroy()
    return trainer.notes


CHANGES = [
    ("lora", False, 4, "zero1"),
    ("lora", True, 1, "zero3_offload"),
    ("full", True, 4, "zero2"),
    ("full", True, 2, "zero1"),
    ("full", False, 1, "zero2_offload"),
]


@pytest.fixture(scope="module")
def saved(folder, worlds):
    @cache
    def save(kind: str, bf16: bool):
        run = f"saved-{kind}-{bf16}"
        worlds[2].run(
            train_until, recipe(folder, run, kind, "zero3", 2, "mutual_information", bf16=bf16), 1, timeout=240
        )
        return newest_whole(folder / run)[0]

    return save


@pytest.mark.parametrize(("kind", "bf16", "ranks", "stage"), CHANGES)
def test_a_checkpoint_that_other_ranks_take_up_and_save_again_holds_the_same_numbers_bit_for_bit(
    folder, worlds, saved, kind, bf16, ranks, stage
):
    before = saved(kind, bf16)
    run = f"again-{kind}-{bf16}-{ranks}-{stage}"
    told = worlds[ranks].run(
        save_again,
        recipe(folder, run, kind, stage, ranks, "mutual_information", bf16=bf16, resume=str(before.path)),
        timeout=240,
    )[0]
    after, passed_over = newest_whole(folder / run)
    assert not passed_over and after.step == before.step
    one, other = (SavedParameters(checkpoint.files("parameters")) for checkpoint in (before, after))
    assert one.shapes == other.shapes and any("log_temperature" in name for name in one.shapes)
    for name in one.shapes:
        for state in (MASTER, "exp_avg", "exp_avg_sq"):
            assert torch.equal(one.read(state, name), other.read(state, name)), (name, state)
    # The variational networks and their own optimiser.
    networks = [torch.load(checkpoint.path / OBJECTIVE, weights_only=True) for checkpoint in (before, after)]
    assert len(networks[0]["optimizer"]["state"]) > 0
    torch.testing.assert_close(networks[0], networks[1], rtol=0, atol=0)
    states = [
        {key: value for key, value in checkpoint.state().items() if key not in ("sharding", "started_from")}
        for checkpoint in (before, after)
    ]
    assert states[0] == states[1]
    assert f"saved by 2 ranks under ZeRO-3, and this run has {ranks} rank" in " ".join(told)
