"""Loading an export that holds only what was trained: its backbone's weights are elsewhere, and LoRA lies beside it as
a PEFT adapter."""

import importlib
import json
import warnings

from safetensors.torch import load_file
from transformers import AutoModel

from .custom_code import model_file, settings_without_code
from .loading import as_dtype, is_finite, load_whole
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
