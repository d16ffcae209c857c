"""The run's DeepSpeed JSON, completed by what the recipe says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

from pdfx.config import TrainSection
from pdfx.config.recipe_file import read_small
from pdfx.config.run_files import DEEPSPEED, shipped_files
from pdfx.errors import UserError

READ = set(
    """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping
    zero_optimization bf16 fp16 amp torch_autocast data_types communication_data_type prescale_gradients
    gradient_predivide_factor gradient_allreduce_op optimizer scheduler zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer disable_allgather disable_python_gc aio compile steps_per_print
    wall_clock_breakdown memory_breakdown dump_state log_level timers flops_profiler comms_logger tensorboard
    wandb csv_monitor comet
    """.split()
)
"""Keys of the file that have an effect here, or that the recipe decides."""

UNUSED = {
    "activation_checkpointing": "model.gradient_checkpointing decides",
    "checkpoint": "checkpoints are pdfx's own",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "models come from 'pdfx convert'",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "models come from 'pdfx convert'",
}
"""Keys that usual files hold and that change nothing here, with the reason."""

SCHEDULERS = {"WarmupDecayLR": "linear", "WarmupLR": "constant", "WarmupCosineLR": "cosine"}
"""DeepSpeed's names of ``train.lr_scheduler_type``."""


def load_deepspeed_config(
    path: str | Path, train: TrainSection, world_size: int, hidden_size: Callable[[], int] | None = None
) -> dict:
    """The settings for ``deepspeed.initialize``.

    The recipe owns optimiser, schedule, precision, clipping and batch sizes: the file may have ``auto`` there, or what
    the recipe says. Bucket sizes of ZeRO-3 that are ``auto`` follow from the hidden size.

    Args:
        hidden_size: of the model; only called if the file needs it.

    Raises:
        UserError: the file is missing, is not a JSON object, or is at odds with the recipe; one sentence names all the
            keys.
    """
    settings = read_json(path)
    problems = [
        f"'{key}' has no effect in pdfx; remove it" for key in settings if key not in READ and key not in UNUSED
    ]
    zero = settings.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    if zero.get("stage", 0) not in (1, 2, 3):
        raise UserError(
            f"{path}: 'zero_optimization.stage' is {zero.get('stage', 0)}; pdfx needs ZeRO stage 1, 2 or 3."
        )
    problems += offload_problems(zero) + drop_update_rule(settings, train) + apply_recipe(settings, train, world_size)
    settings.setdefault("steps_per_print", 2**31 - 1)
    if train.bf16:
        settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    fill_bucket_sizes(zero, hidden_size)
    left = [key for key, value in flatten(settings).items() if value == "auto"]
    problems += [f"'{key}' is 'auto', which pdfx does not fill in; give a value or remove the key" for key in left]
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}.")
    try:
        DeepSpeedConfig({key: value for key, value in settings.items() if key != "train_batch_size"})
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is not what DeepSpeed takes: {' '.join(str(error).split())[:500]}") from None
    return settings


def apply_recipe(settings: dict, train: TrainSection, world_size: int) -> list[str]:
    """Set what the recipe owns; returns what the file says otherwise."""
    problems, pairs, steps = [], train.per_device_train_batch_size, train.gradient_accumulation_steps
    for key in ("fp16", "amp", "torch_autocast"):
        section = settings.pop(key, None)
        if isinstance(section, dict) and section.get("enabled", key == "amp") not in (False, "auto"):
            problems.append(f"remove '{key}'; pdfx trains in bf16 or float32, as the recipe's train.bf16 says")
    accumulates = "pdfx, which accumulates by itself (train.gradient_accumulation_steps),"
    # Key, value, who sets it, and another value that the file may have.
    for key, value, owner, other in (
        ("bf16.enabled", train.bf16, "train.bf16", "auto"),
        # Otherwise ZeRO 1 and 2 would apply gradients that are not finite.
        ("bf16.check_grad_overflow", True, "pdfx, which skips such updates,", "auto"),
        ("gradient_clipping", train.max_grad_norm, "train.max_grad_norm", "auto"),
        # The engine's own accumulation would not contrast the chunks of a batch with one another.
        ("gradient_accumulation_steps", 1, accumulates, steps),
        ("train_batch_size", world_size * pairs, "ranks x train.per_device_train_batch_size", "auto"),
        # DeepSpeed wants some number, so a shipped file's value of 1 is not a contradiction.
        ("train_micro_batch_size_per_gpu", pairs, "train.per_device_train_batch_size", 1),
    ):
        name = key.removeprefix("bf16.")
        section = settings if name == key else settings.setdefault("bf16", {})
        if section.get(name, "auto") not in ("auto", value, other):
            problems.append(f"'{key}' is {section[name]!r}, but {owner} sets it to {value!r}; remove it from the file")
        section[name] = value
    return problems


def unused_keys(path: str | Path) -> list[str]:
    """A sentence about each key of the file that changes nothing."""
    return [
        f"Warning: {path}: '{key}' has no effect: {UNUSED[key]}."
        for key in {**read_json(path), **flatten(read_json(path))}
        if key in UNUSED
    ]


def drop_update_rule(settings: dict, train: TrainSection) -> list[str]:
    """Take optimiser and schedule out of the settings; returns what differs from the recipe."""
    expected = {
        "lr": train.learning_rate,
        "betas": [train.adam_beta1, train.adam_beta2],
        "eps": train.adam_epsilon,
        "weight_decay": train.weight_decay,
        "total_num_steps": train.max_steps,
        "warmup_max_lr": train.learning_rate,
        "warmup_min_lr": 0,
        "warmup_num_steps": train.warmup_steps,
        "torch_adam": True,
        "adam_w_mode": True,
    }
    problems = []
    for key in ("optimizer", "scheduler"):
        section = settings.pop(key, None)
        if section is None:
            continue
        kind, parameters = (section.get("type"), section.get("params", {})) if isinstance(section, dict) else (None, {})
        if key == "optimizer":
            right = kind in ("Adam", "AdamW")
        else:
            right = SCHEDULERS.get(str(kind)) == train.lr_scheduler_type
        others = [name for name, value in parameters.items() if value not in ("auto", expected.get(name, "auto"))]
        if not right or others:
            what = f"its {', '.join(others)}" if right else f"its type {kind!r}"
            problems.append(f"remove '{key}'; the recipe's train section sets it, and {what} differs")
    return problems


def offload_problems(zero: dict) -> list[str]:
    """What is wrong if parameters or optimiser states would be kept where checkpoints do not find them."""
    problems = []
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            problems.append(f"'zero_optimization.{key}.device' is 'nvme', which checkpoints cannot read; use 'cpu'")
        if isinstance(offload, dict) and offload.get("ratio", 1) != 1:
            problems.append(
                f"'zero_optimization.{key}.ratio' is {offload['ratio']}, which checkpoints cannot read; remove it to "
                "offload all"
            )
    return problems


def fill_bucket_sizes(zero: dict, hidden_size: Callable[[], int] | None) -> None:
    """The sizes that transformers' Trainer derives from a model of hidden size h: buckets of h^2 and 0.9 h^2, and
    parameters below 10 h kept whole."""
    sizes = {
        "reduce_bucket_size": lambda width: width * width,
        "stage3_prefetch_bucket_size": lambda width: int(0.9 * width * width),
        "stage3_param_persistence_threshold": lambda width: 10 * width,
    }
    wanted = [key for key in sizes if zero.get(key) == "auto"]
    if wanted and hidden_size is not None:
        zero.update({key: sizes[key](hidden_size()) for key in wanted})


def read_json(path: str | Path) -> dict:
    """The JSON object in a file, or in a shipped one by its name, such as ``zero3``. Raises UserError."""
    shipped = shipped_files(DEEPSPEED)
    try:
        settings = json.loads(
            read_small(shipped.get(str(path), Path(path))), object_pairs_hook=dict_raise_error_on_duplicate_keys
        )
    except OSError as error:
        raise UserError(
            f"train.deepspeed names {path}, which is not a file that can be read ({error.strerror}), nor one of "
            f"pdfx's own ({', '.join(shipped)})."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(settings).__name__}.")
    return settings


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
