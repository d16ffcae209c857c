"""Weights are loaded whole or not at all, in one type of number. An export may hold only what was trained: its backbone
is elsewhere then, and LoRA lies beside it as a PEFT adapter."""

import importlib
import json
import warnings
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from .custom_code import model_file, settings_without_code, unknown_types
from .families import family_of_type
from .prefixes import PREFIX_NAME

ADAPTER_FOLDER = "adapter"
TRAINED_WEIGHTS = "model.safetensors"
LORA_FIELDS = {
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "bias",
    "target_modules",
}


def backbone_config(path: str, **hub):
    """The configuration of a supported backbone, found in a directory or on the hub (``revision``,
    ``trust_remote_code``).

    Raises:
        OSError: there is none.
        ValueError: the model's type is not supported, or something in its files would bring code from elsewhere.
    """
    settings = settings_without_code(path, hub.get("revision"))
    # Before transformers reads it, whose own message lists all types that it knows.
    family_of_type(settings.get("model_type"))
    if unknown := unknown_types(settings):
        raise ValueError(
            f"It has parts of type '{min(unknown)}', which no class is registered for; name the file that registers "
            "it in model.modules."
        )
    return AutoConfig.from_pretrained(path, **hub)


def load_whole(load, path, *args, exact: bool = False, **kwargs):
    """The model that ``load`` (a class's ``from_pretrained``) gives, and its loading info.

    Args:
        exact: whether weights that the model does not have are refused; a warning names them otherwise, except for a
            head that the backbone has no use for.

    Raises:
        OSError: files are missing.
        ValueError: a weight is missing, has another shape or is not finite; transformers itself would draw another one.
    """
    level, problem = logging.get_verbosity(), None
    if exact:
        kwargs["use_safetensors"] = True
    # Its report of the same would come before the one sentence.
    logging.set_verbosity_error()
    try:
        model, info = load(path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except UnpicklingError:
        problem = "they are pickled with more than tensors, which might run code; have them as safetensors."
    except RuntimeError as error:
        problem = str(error)
    finally:
        logging.set_verbosity(level)
    if (problem := first_ranks(problem)) is not None:
        raise ValueError(f"The weights in {path} do not fit the model: {problem}")
    # A weight of another shape is missing too, for some versions of transformers.
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    broken = {name for name, parameter in model.named_parameters() if not is_finite(parameter)}
    unknown = {name for name in info["unexpected_keys"] if not name.startswith("lm_head.")}
    problems = {
        "lacks {} of the model": set(info["missing_keys"]) - mismatched,
        "holds {} of another shape than the model's": mismatched,
        "holds {} with NaN or infinity": broken,
        "holds {} that the model does not have": unknown,
    }
    for problem, names in problems.items():
        if names:
            sentence = f"{path} {problem.format(f'{len(names)} weights')}, {min(names)} among them."
            if names is unknown and not exact:
                warnings.warn(sentence, stacklevel=2)
            else:
                raise ValueError(
                    sentence + " Copy its files again; its config.json and its weights must belong together."
                )
    return model, info


def first_ranks(problem: str | None) -> str | None:
    """Rank 0's problem under ZeRO-3, because that rank alone reads the values; otherwise this rank's own."""
    if not is_deepspeed_zero3_enabled() or not distributed.is_initialized():
        return problem
    shared = [problem]
    distributed.broadcast_object_list(shared)
    return shared[0] or problem


def is_finite(parameter: torch.Tensor) -> bool:
    """Whether all values are numbers, in one pass without a copy; what is sharded or on the meta device passes."""
    if parameter.is_meta or not parameter.numel() or not parameter.is_floating_point():
        return True
    return all(bound.isfinite() for bound in torch.aminmax(parameter.detach()))


def as_dtype(asked, written) -> torch.dtype:
    """The type that ``from_pretrained(dtype=asked)`` means; the one ``written`` if that is None or ``auto``."""
    chosen = written if asked in (None, "auto") else asked
    chosen = getattr(torch, chosen, None) if isinstance(chosen, str) else chosen or torch.float32
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, its name or 'auto', not {asked!r}.")
    return chosen


def record_dtype(config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Say in a configuration, and in all inside it, which type of number the weights have."""
    config.dtype = dtype
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            record_dtype(part, dtype)


def load_adapted(cls, export, config, dtype=None, revision=None):
    """The embedder of such an export with LoRA merged; needs the package ``peft``.

    Args:
        cls: the embedder's class.
        config: of the export; ``config.base_model`` names the backbone.
        dtype: of all weights; as they were exported if it is None or ``auto``.

    Raises:
        ImportError: ``peft`` is not installed.
        OSError: the backbone or a file is missing.
        ValueError: the trained weights do not fit the backbone, or one of either is not finite.
    """
    dtype, base = as_dtype(dtype, config.dtype), config.base_model
    settings_without_code(base["path"], base["revision"])
    # Its class is transformers' own, or that of a module which was trusted before; nothing else that its files name is
    # run.
    hub = {"revision": base["revision"], "trust_remote_code": False}
    backbone, _ = load_whole(AutoModel.from_pretrained, base["path"], config=config.backbone, dtype=dtype, **hub)
    embedder = cls(config, backbone)
    weights = load_file(model_file(export, TRAINED_WEIGHTS, revision))
    own = {name: tuple(value.shape) for name, value in embedder.state_dict().items()}
    wrong = [name for name, value in weights.items() if own.get(name) != tuple(value.shape) or not is_finite(value)]
    missing = [
        name for name in own if name not in weights and (not name.startswith("backbone.") or f".{PREFIX_NAME}." in name)
    ]
    if wrong or missing:
        raise ValueError(
            f"{export} does not fit the backbone {base['path']}: {(wrong + missing)[0]} is missing, not finite or "
            "has another shape."
        )
    embedder.load_state_dict(weights, strict=False)
    # Not imported as usual, because transformers would then ask for it before it loads any export.
    peft = importlib.import_module("peft")
    lora = lora_config(peft.LoraConfig, export, revision)
    # Without it PEFT would look for a pickled one.
    model_file(export, "adapter_model.safetensors", revision, ADAPTER_FOLDER)
    try:
        with warnings.catch_warnings():
            # PEFT only warns of weights that are missing, which then change nothing.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            # In place: the embedder holds the same backbone.
            place = {"subfolder": ADAPTER_FOLDER, "revision": revision}
            peft.PeftModel.from_pretrained(backbone, str(export), config=lora, **place).merge_and_unload(
                safe_merge=True
            )
    except UserWarning as warning:
        raise ValueError(f"The adapter in {export} is not whole: {warning}") from warning
    # What was loaded is whole, and so is what is saved of it.
    embedder.config.base_model = None
    return embedder.to(dtype).eval()


def lora_config(kind, export, revision):
    """The adapter's settings, made of those alone that exports have: others name modules to import, or change what is
    computed.

    Raises:
        ValueError: one of the others is set.
    """
    file, usual = model_file(export, "adapter_config.json", revision, ADAPTER_FOLDER), kind()
    settings = json.loads(file.read_text(encoding="utf-8"))
    foreign = [
        name
        for name, value in settings.items()
        if name not in LORA_FIELDS and value and value != getattr(usual, name, value)
    ]
    if foreign or settings.get("peft_type") != "LORA":
        raise ValueError(
            f"{export} has an adapter with {(foreign or ['peft_type'])[0]!r} in its adapter_config.json, which no "
            "export of pdfx sets."
        )
    return kind(**{name: settings[name] for name in LORA_FIELDS & settings.keys()})
