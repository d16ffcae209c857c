"""The DeepSpeed engine of a run: its parameter groups, optimiser, and the module it wraps."""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from pdfx.checkpoint.zero_shards import masters, part_of
from pdfx.config import TEMPERATURE_BOUNDS, Config, TrainSection
from pdfx.distributed.world import World
from pdfx.model import EmbedderOutput, ParallelEmbedder
from pdfx.model.fusion import fuse
from pdfx.model.prefixes import PREFIX_NAME

LOG_TEMPERATURE = "log_temperature_offset"


class TrainingModule(nn.Module):
    """The embedder and the temperature in one module, so that ZeRO shards, gathers and updates both.

    What the objective needs beside the embeddings of paths (temperature, weights of a learned fusion) leaves the module
    with them, as copies: the objective stage can then use it although no sharded parameter is gathered.

    Args:
        embedder: trained by its embeddings' gradients.
        temperature: the initial temperature.
        learned: whether the temperature is a parameter; a constant otherwise.
    """

    def __init__(self, embedder: ParallelEmbedder, temperature: float, learned: bool):
        super().__init__()
        self.embedder = embedder
        self.initial_log_temperature = math.log(temperature)
        # The parameter is the distance from the start: near 0 even bf16 resolves it finely, which it does not do near
        # log(0.02). ZeRO-3 wants one type of number throughout.
        self.offset_bounds = tuple(math.log(bound) - self.initial_log_temperature for bound in TEMPERATURE_BOUNDS)
        self.log_temperature_offset = nn.Parameter(torch.zeros(1, dtype=embedder.dtype)) if learned else None

    def forward(
        self, inputs: dict[str, torch.Tensor], paths: list[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embed n inputs by the k given paths, all K by default.

        Returns:
            paths ``[n, k, D]``, the logarithm of the temperature, a float32 scalar, and the fusion's logits, float32
            ``[K]``, ``[K, D]`` if it is routed (``[0]`` if it is not learned). The caller that has all paths fuses
            them.
        """
        output = self.embedder(inputs, paths, fused=False)
        log_temperature = torch.tensor(self.initial_log_temperature, device=output.paths.device)
        if self.log_temperature_offset is not None:
            offset = self.log_temperature_offset.float().sum()
            # The value is bounded and its gradient is not, which could not lead back otherwise.
            log_temperature = log_temperature + offset.detach().clamp(*self.offset_bounds) + (offset - offset.detach())
        logits = output.paths.new_zeros(0) if output.fusion_logits is None else output.fusion_logits
        return output.paths, log_temperature, logits


def parameter_groups(module: TrainingModule, config: Config) -> list[dict]:
    """The trainable parameters as the optimiser's groups.

    ``prefixes`` have their own learning rate and no weight decay, ``undecayed`` (norms, biases, fusion, temperature)
    have no decay; ``weights`` are the rest. ``base_lr`` is what the schedule's factor multiplies.
    """
    train = config.train
    members: dict[str, list[nn.Parameter]] = {"prefixes": [], "undecayed": [], "weights": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members[group_of(name, parameter)].append(parameter)
    rates = {"prefixes": config.model.prefix.learning_rate or train.learning_rate}
    decays = {"weights": train.weight_decay}
    return [
        {"name": name, "params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decays.get(name, 0.0)}
        for name, parameters in members.items()
        if parameters
        for rate in [rates.get(name, train.learning_rate)]
    ]


def group_of(name: str, parameter: nn.Parameter) -> str:
    parts = name.split(".")
    if PREFIX_NAME in parts:
        return "prefixes"
    # ZeRO-3 shows a sharded parameter as flat and keeps its shape beside it.
    dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
    return "undecayed" if dimensions < 2 or "fusion" in parts else "weights"


def make_optimizer(groups: list[dict], settings: dict, train: TrainSection) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): torch's own, or DeepSpeed's for the CPU if it is offloaded."""
    options: dict[str, Any] = {
        "lr": train.learning_rate,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
        "weight_decay": train.weight_decay,
    }
    if settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    # Fused: one pass over flat shards that are large, without temporaries of their size.
    return torch.optim.AdamW(groups, fused=True, **options)


def start_engine(module: TrainingModule, config: Config, settings: dict) -> deepspeed.DeepSpeedEngine:
    """Shard the module and make it trainable under DeepSpeed's settings. Every rank calls this at the same time.

    Under bf16 DeepSpeed casts the parameters and keeps float32 masters in the optimiser; otherwise all parameters must
    be float32 already.
    """
    optimizer = make_optimizer(parameter_groups(module, config), settings, config.train)
    with quiet_deepspeed():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


@torch.no_grad()
def bound_temperature(engine: deepspeed.DeepSpeedEngine) -> None:
    """Put a learned temperature that a step took beyond ``TEMPERATURE_BOUNDS`` back to the bound, where it is kept. The
    rounded copy that the module reads follows with the next step; the module bounds it by itself."""
    parameter = engine.module.log_temperature_offset
    part = None if parameter is None else part_of(engine, LOG_TEMPERATURE, parameter)
    if part is not None:
        part.of(masters(engine)).clamp_(*engine.module.offset_bounds)


def embed_inputs(engine: deepspeed.DeepSpeedEngine, inputs: dict[str, torch.Tensor], world: World) -> EmbedderOutput:
    """Embed without gradient and dropout. Under ZeRO-3 all ranks call this together, each with inputs of its own."""
    training = engine.module.training
    engine.eval()
    try:
        with torch.no_grad():
            paths, _, logits = engine({name: tensor.to(world.device) for name, tensor in inputs.items()})
            fused = fuse(engine.module.embedder.config.fusion, paths, logits)
    finally:
        engine.train(training)
    return EmbedderOutput(paths=paths, fused=fused)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, factor: float) -> None:
    """Give every group ``base_lr`` times the schedule's factor."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@contextmanager
def sharded_loading(settings: dict):
    """Let transformers put each weight into its ZeRO-3 shard as it is read, so that no rank ever holds the whole model.

    Yields what makes a list of parameters whole within a block, on all ranks together.
    """
    if settings["zero_optimization"]["stage"] != 3:
        yield nullcontext
        return
    # transformers keeps a weak reference only, so the name must live as long as the block.
    kept = HfDeepSpeedConfig(settings)
    try:
        yield deepspeed.zero.GatheredParameters
    finally:
        unset_hf_deepspeed_config()
        del kept


@contextmanager
def quiet_deepspeed():
    """Hide DeepSpeed's many informative lines; its warnings stay."""
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def peak_memory(device: torch.device) -> float:
    """The most memory this rank's device or, on the CPU, this process ever held, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
