"""The DeepSpeed engine of a run: its configuration, parameter groups, optimiser, and the module it wraps."""

from __future__ import annotations

import json
import logging
import math
from contextlib import contextmanager, nullcontext
from pathlib import Path

import deepspeed
import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from pdfx.config import Config, TrainSection
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder
from pdfx.model.prefixes import PREFIX_NAME

LOG_TEMPERATURE = "log_temperature_offset"


class TrainingModule(nn.Module):
    """The embedder and the temperature in one module, so that ZeRO shards, gathers and updates both.

    What the objective needs beside the embeddings of paths (temperature, weights of a learned fusion) leaves the module with them, as copies: the
    objective stage can then use it where no sharded parameter is gathered.

    Args:
        embedder: trained by its embeddings' gradients.
        temperature: the initial temperature.
        learned: whether the temperature is a parameter; a constant otherwise.
    """

    def __init__(self, embedder: ParallelEmbedder, temperature: float, learned: bool):
        super().__init__()
        self.embedder = embedder
        self.initial_log_temperature = math.log(temperature)
        # The parameter is the distance from the start: near 0 even bf16 resolves it finely, which it does not do near log(0.02).
        # ZeRO-3 wants one type of number throughout.
        self.log_temperature_offset = nn.Parameter(torch.zeros(1, dtype=embedder.dtype)) if learned else None

    def forward(self, inputs: dict[str, torch.Tensor], paths: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embed n inputs by the k given paths, all K by default.

        Returns:
            paths ``[n, k, D]``, the fusion ``[n, F]`` of these k, the logarithm of the temperature, a float32 scalar, and the fusion's logits, float32
            ``[K]`` (``[0]`` where the fusion is not learned).
        """
        output = self.embedder(inputs, paths)
        log_temperature = torch.tensor(self.initial_log_temperature, device=output.paths.device)
        if self.log_temperature_offset is not None:
            log_temperature = log_temperature + self.log_temperature_offset.float().sum()
        logits = output.paths.new_zeros(0) if output.fusion_logits is None else output.fusion_logits
        return output.paths, output.fused, log_temperature, logits


def load_deepspeed_config(path: str | Path, train: TrainSection, world_size: int) -> dict:
    """A DeepSpeed JSON completed by what the recipe says.

    The recipe owns optimiser, schedule, precision, clipping and batch sizes. A key of the JSON that would set the first two, or that contradicts the recipe on
    the others, is refused; ``auto`` and equal values are fine.

    Raises:
        UserError: the file is missing, no JSON object, no ZeRO 1 to 3, or at odds with the recipe.
    """
    settings = read_json(path)
    zero = settings.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if stage not in (1, 2, 3):
        raise UserError(f"{path}: 'zero_optimization.stage' is {stage}; pdfx needs ZeRO stage 1, 2 or 3.")
    check_offload(path, zero)
    for key in ("optimizer", "scheduler"):
        if settings.pop(key, None) is not None:
            raise UserError(f"{path}: remove '{key}'; the recipe's train section sets it.")
    for key in ("fp16", "amp", "torch_autocast"):
        if isinstance(settings.get(key), dict) and settings[key].get("enabled", key == "amp"):
            raise UserError(f"{path}: remove '{key}'; pdfx trains in bf16 or float32, as the recipe's train.bf16 says.")
    bf16 = settings.setdefault("bf16", {})
    own(path, bf16, "enabled", train.bf16, "train.bf16", "bf16.enabled")
    # Otherwise ZeRO 1 and 2 would apply gradients that are not finite.
    own(path, bf16, "check_grad_overflow", True, "pdfx, which skips such updates,", "bf16.check_grad_overflow")
    own(path, settings, "gradient_clipping", train.max_grad_norm, "train.max_grad_norm")
    # The chunks of an accumulated batch are contrasted with one another, which the engine's own accumulation would not do.
    own(path, settings, "gradient_accumulation_steps", 1, "pdfx, which accumulates by itself (train.gradient_accumulation_steps),")
    own(path, settings, "train_batch_size", world_size * train.per_device_train_batch_size, "ranks x train.per_device_train_batch_size")
    # Only DeepSpeed's own throughput figures depend on it, so a shipped file's value of 1 is no contradiction.
    settings["train_micro_batch_size_per_gpu"] = train.per_device_train_batch_size
    settings.setdefault("steps_per_print", 2**31 - 1)
    if train.bf16:
        settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    for key, value in flatten(settings).items():
        if value == "auto":
            raise UserError(f"{path}: '{key}' is 'auto', which only some trainers fill in; give a value or remove the key.")
    return settings


def check_offload(path: str | Path, zero: dict) -> None:
    """Raises UserError where parameters or optimiser states would be kept where checkpoints do not find them."""
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            raise UserError(f"{path}: 'zero_optimization.{key}.device' is 'nvme', which checkpoints cannot read; use 'cpu'.")
        if isinstance(offload, dict) and offload.get("ratio", 1) != 1:
            raise UserError(f"{path}: 'zero_optimization.{key}.ratio' is {offload['ratio']}, which checkpoints cannot read; remove it to offload all.")


def read_json(path: str | Path) -> dict:
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"train.deepspeed names {path}, which is no file.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(settings).__name__}.")
    return settings


def own(path, settings: dict, key: str, value, owner: str, name: str | None = None) -> None:
    """Set a key that the recipe decides. Raises UserError where the file decides otherwise."""
    if settings.get(key, "auto") not in ("auto", value):
        raise UserError(f"{path}: '{name or key}' is {settings[key]!r}, but {owner} sets it to {value!r}; remove it from the file.")
    settings[key] = value


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def parameter_groups(module: TrainingModule, config: Config) -> list[dict]:
    """The trainable parameters as the optimiser's groups.

    ``prefixes`` have their own learning rate and no weight decay, ``undecayed`` (norms, biases, fusion, temperature) have no decay; ``weights`` are the rest.
    ``base_lr`` is what the schedule's factor multiplies.
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
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): torch's own, or DeepSpeed's for the CPU where the optimiser is offloaded."""
    options = {"lr": train.learning_rate, "betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon, "weight_decay": train.weight_decay}
    if settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    # Fused: one pass over flat shards that are large, without temporaries of their size.
    return torch.optim.AdamW(groups, fused=True, **options)


def start_engine(module: TrainingModule, config: Config, settings: dict) -> deepspeed.DeepSpeedEngine:
    """Shard the module and make it trainable under DeepSpeed's settings. Every rank calls this at the same time.

    Under bf16 DeepSpeed casts the parameters and keeps float32 masters in the optimiser; otherwise all parameters must be float32 already.
    """
    optimizer = make_optimizer(parameter_groups(module, config), settings, config.train)
    with quiet_deepspeed():
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


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
