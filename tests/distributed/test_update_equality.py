"""Any sharding, any number of ranks and any chunking make the update of plain PyTorch on one process with the whole batch."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config

from pdfx.build import build_embedder
from pdfx.config import Config
from pdfx.data import TrainLoader
from pdfx.objective import Objective
from pdfx.train.engine import TrainingModule, make_optimizer, parameter_groups
from pdfx.train.schedule import derived_seed, learning_rate_factor
from pdfx.train.step import split_slots

RANKS, STEPS, PAIRS = 2, 3, 8

# Adam divides by the root of the second moment, so that at the default epsilon of 1e-8 a gradient that is nothing but rounding noise moves its parameter by
# a whole learning rate. Against an epsilon of 1e-3 float32 noise of about 1e-7 is small; gradients of the usual size here (1e-4 to 1e-1) still decide.
TRAIN = {"max_steps": STEPS, "adam_epsilon": 1e-3, "weight_decay": 0.1, "learning_rate": 1e-2, "warmup_steps": 2, "max_grad_norm": 0.5}
# An update is at most learning_rate times (gradient noise of 1e-7 over epsilon 1e-3), 1e-6 per step, and the steps add up; measured: below 3e-7.
TOLERANCE = 1e-5

LORA = {"r": 2, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj", "down_proj"]}
OBJECTIVE = {"temperature": 0.2, "learn_temperature": True, "symmetric": True, "diversity": "none", "mutual_information": {"hidden": 16, "warmup_steps": 0}}
INFORMATION = OBJECTIVE | {"diversity": "mutual_information", "diversity_weight": 0.05}

KINDS = {
    "lora": ("qwen2_vl", {"lora": LORA, "fusion": "softmax"}, OBJECTIVE),
    "full": ("llava_next", {"lora": None, "train_vision": True}, OBJECTIVE),
    "full with a cached tower": ("llava_next", {"lora": None, "cache_vision": True}, OBJECTIVE),
    "lora with mutual information": ("llava_next", {"lora": LORA}, INFORMATION),
    "full with mutual information": ("qwen2_vl", {"lora": None, "gradient_checkpointing": True}, INFORMATION),
}


def recipe(folder: Path, kind: str, stage: str, chunks: int, pairs: int, run: str) -> Config:
    family, model, objective = KINDS[kind]
    model = model | {"prefix": {"length": 3, "learning_rate": 2e-2}}
    train = TRAIN | {"output_dir": str(folder / run), "per_device_train_batch_size": pairs, "gradient_accumulation_steps": chunks}
    return tiny_config(folder, family, stage, model=model, objective=objective, train=train, data={"hard_negatives": 1})


def engine_parameters(config: Config) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """In a rank: train with the real trainer; its parameters, gathered, and each step's metrics."""
    import deepspeed

    from pdfx.train.cluster import join_world
    from pdfx.train.telemetry import StepTimer
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    metrics = [trainer._train_step(StepTimer()) for _ in range(STEPS)]
    parameters = {}
    for name, parameter in trainer.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            parameters[name] = parameter.detach().clone()
    trainer.close()
    trainer.engine.destroy()
    return parameters, metrics


class PlainPyTorch:
    """The reference: no engine, no sharding, no chunks, no gradient tricks."""

    def __init__(self, config: Config):
        self.config = config
        torch.manual_seed(derived_seed(config.train.seed, "adapters"))
        embedder = build_embedder(config)
        self.module = TrainingModule(embedder, config.objective.temperature, config.objective.learn_temperature)
        self.start = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}
        self.optimizer = make_optimizer(parameter_groups(self.module, config), {"zero_optimization": {}}, config.train)
        self.loader = TrainLoader(config.data, embedder.processor, 0, 1, PAIRS, 1, config.train.seed)
        settings = config.objective
        self.objective = Objective(settings.model_copy(update={"diversity": "none"}), config.model.paths, 32, config.train.seed, [])
        self.information = Objective(settings, config.model.paths, 32, config.train.seed, [])

    def train(self) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        metrics = [self.step(step) for step in range(1, STEPS + 1)]
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}, metrics

    def step(self, step: int) -> dict[str, float]:
        batch = next(self.loader)
        paths, fused, log_temperature = self.module(batch.chunks[0].inputs)
        paths, fused = split_slots(paths, PAIRS, 1), split_slots(fused, PAIRS, 1)
        ids = (batch.target_ids, batch.negative_ids, batch.valid, batch.negative_valid)
        loss, _ = self.objective(*paths, *fused, *ids, log_temperature, step - 1)
        loss = loss + self.mean_of_rank_terms(paths[0], paths[1], batch.valid)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.module.parameters():
            # The tower's layers behind the one that LLaVA-NeXT reads get no gradient. ZeRO takes that for a zero and decays them; torch alone would skip them.
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.train.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(step, self.config.train, STEPS)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    def mean_of_rank_terms(self, query: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """What the ranks' mutual-information terms must come to: q fitted to all pairs, the estimate made of each rank's pairs alone."""
        if self.information.variational is None:
            return torch.zeros(())
        self.information.fit_variational(query, target, valid)
        sides = torch.stack([query, target])
        parts = zip(sides.chunk(RANKS, dim=1), valid.chunk(RANKS), strict=True)
        estimates = [self.information.variational.estimate(part, part_valid).per_side.mean() for part, part_valid in parts]
        return self.config.objective.diversity_weight * torch.stack(estimates).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(folder):
    @cache
    def compute(kind: str):
        plain = PlainPyTorch(recipe(folder, kind, "zero2", 1, PAIRS, "reference"))
        return plain.start, *plain.train()

    return compute


@pytest.mark.parametrize(
    ("kind", "stage", "chunks"),
    [(kind, stage, chunks) for kind in ("lora", "full") for stage in ("zero2", "zero3") for chunks in (1, 2)]
    + [("lora", "zero1", 2), ("full", "zero1", 1), ("full with a cached tower", "zero3", 2)]
    + [("lora with mutual information", "zero2", 2), ("full with mutual information", "zero3", 1)],
)
def test_three_steps_on_two_ranks_give_the_parameters_of_one_process_with_the_whole_batch(folder, two_ranks, reference, kind, stage, chunks):
    start, expected, expected_metrics = reference(kind)
    config = recipe(folder, kind, stage, chunks, PAIRS // RANKS // chunks, f"{kind}-{stage}-{chunks}")
    for parameters, metrics in two_ranks.run(engine_parameters, config):
        assert parameters.keys() == expected.keys()
        moved = max((expected[name] - start[name]).abs().max().item() for name in expected)
        assert moved > 100 * TOLERANCE
        for name, value in parameters.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
        for own, plain in zip(metrics, expected_metrics, strict=True):
            assert own["loss"] == pytest.approx(plain["loss"], rel=1e-5)
            assert own["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
