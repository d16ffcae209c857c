"""Any sharding, any number of ranks and any chunking make the update of plain PyTorch on one process with the whole
batch."""

from functools import cache
from pathlib import Path

import pytest
import torch
from plain_training import PlainPyTorch, engine_parameters
from tiny_runs import tiny_config

from pdfx.config import Config

RANKS, STEPS, PAIRS = 2, 3, 8

# Adam divides by the root of the second moment, so that at the default epsilon of 1e-8 a gradient that is nothing but
# rounding noise moves its parameter by a whole learning rate. Against an epsilon of 1e-3 float32 noise of about 1e-7 is
# small; gradients of the usual size here (1e-4 to 1e-1) still decide.
TRAIN = {
    "max_steps": STEPS,
    "adam_epsilon": 1e-3,
    "weight_decay": 0.1,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
}
# An update is at most learning_rate times (gradient noise of 1e-7 over epsilon 1e-3), 1e-6 per step, and the steps add
# up; measured: below 3e-7.
TOLERANCE = 1e-5

LORA = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj", "down_proj"]}
OBJECTIVE = {
    "temperature": 0.2,
    "learn_temperature": True,
    "symmetric": True,
    "diversity": "none",
}
TERM = {"diversity": "cross_correlation", "diversity_weight": 0.5}
TOGETHER = {"maxsim_weight": 0.5, "maxsim_budgets": [1, 2], "distillation_weight": 0.5}
GLOBAL_TERM = {"diversity": "hsic", "diversity_weight": 0.5, "diversity_scope": "global"}

KINDS = {
    "lora": ("qwen2_vl", {"lora": LORA, "fusion": "softmax"}, OBJECTIVE),
    "full": ("llava_next", {"lora": None, "train_vision": True}, OBJECTIVE),
    "full with a cached tower": ("llava_next", {"lora": None, "cache_vision": True}, OBJECTIVE),
    "lora with all paths together": ("llava_next", {"lora": LORA, "fusion": "routed"}, OBJECTIVE | TERM | TOGETHER),
    "full with a global diversity term": (
        "qwen2_vl",
        {"lora": None, "gradient_checkpointing": True},
        OBJECTIVE | GLOBAL_TERM,
    ),
}


def recipe(folder: Path, kind: str, stage: str, chunks: int, pairs: int, run: str) -> Config:
    family, model, objective = KINDS[kind]
    model = model | {"prefix": {"length": 3, "learning_rate": 2e-2}}
    train = TRAIN | {
        "output_dir": str(folder / run),
        "per_device_train_batch_size": pairs,
        "gradient_accumulation_steps": chunks,
    }
    return tiny_config(folder, family, stage, model=model, objective=objective, train=train, data={"hard_negatives": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(folder):
    @cache
    def compute(kind: str):
        plain = PlainPyTorch(recipe(folder, kind, "zero2", 1, PAIRS // RANKS, "reference"), RANKS)
        return plain.start, *plain.train()

    return compute


@pytest.mark.parametrize(
    ("kind", "stage", "chunks"),
    [(kind, stage, chunks) for kind in ("lora", "full") for stage in ("zero2", "zero3") for chunks in (1, 2)]
    + [("lora", "zero1", 2), ("full", "zero1", 1), ("full with a cached tower", "zero3", 2)]
    + [("lora with all paths together", "zero2", 2), ("full with a global diversity term", "zero3", 1)],
)
def test_three_steps_on_two_ranks_give_the_parameters_of_one_process_with_the_whole_batch(
    folder, two_ranks, reference, kind, stage, chunks
):
    start, expected, expected_metrics = reference(kind)
    config = recipe(folder, kind, stage, chunks, PAIRS // RANKS // chunks, f"{kind}-{stage}-{chunks}")
    for parameters, metrics in two_ranks.run(engine_parameters, config):
        assert parameters.keys() == expected.keys()
        moved = max((expected[name] - start[name]).abs().max().item() for name in expected)
        assert moved > 100 * TOLERANCE
        for name, value in parameters.items():
            torch.testing.assert_close(
                value, expected[name], rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
            )
        for own, plain in zip(metrics, expected_metrics, strict=True):
            assert own["loss"] == pytest.approx(plain["loss"], rel=1e-5)
            assert own["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
