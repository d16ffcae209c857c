"""Loading an export that holds only what was trained: its backbone's weights are elsewhere, and LoRA lies beside it as a PEFT adapter."""

import importlib
import warnings

from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import cached_file

from .loading import as_dtype, is_finite, load_whole
from .prefixes import PREFIX_NAME

ADAPTER_FOLDER = "adapter"
TRAINED_WEIGHTS = "model.safetensors"


def load_adapted(cls, export, config, dtype=None, revision=None, trust_remote_code=False):
    """The embedder of such an export with LoRA merged; needs the package ``peft``.

    Args:
        cls: the embedder's class.
        config: of the export; ``config.base_model`` names the backbone.
        dtype: of all weights; as they were exported where it is None or ``auto``.

    Raises:
        ImportError: ``peft`` is not installed.
        OSError: the backbone or a file is missing.
        ValueError: the trained weights do not fit the backbone, or one of either is not finite.
    """
    dtype, base = as_dtype(dtype, config.dtype), config.base_model
    hub = {"revision": base["revision"], "trust_remote_code": trust_remote_code}
    backbone, _ = load_whole(AutoModel.from_pretrained, base["path"], config=config.backbone, dtype=dtype, **hub)
    embedder = cls(config, backbone)
    weights = load_file(cached_file(str(export), TRAINED_WEIGHTS, revision=revision))
    own = {name: tuple(value.shape) for name, value in embedder.state_dict().items()}
    wrong = [name for name, value in weights.items() if own.get(name) != tuple(value.shape) or not is_finite(value)]
    missing = [name for name in own if name not in weights and (not name.startswith("backbone.") or f".{PREFIX_NAME}." in name)]
    if wrong or missing:
        raise ValueError(f"{export} does not fit the backbone {base['path']}: {(wrong + missing)[0]} is missing, not finite or has another shape.")
    embedder.load_state_dict(weights, strict=False)
    # Not imported as usual, because transformers would then ask for it before it loads any export.
    peft = importlib.import_module("peft")
    try:
        with warnings.catch_warnings():
            # PEFT only warns of weights that are missing, which then change nothing.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            # In place: the embedder holds the same backbone.
            peft.PeftModel.from_pretrained(backbone, str(export), subfolder=ADAPTER_FOLDER, revision=revision).merge_and_unload(safe_merge=True)
    except UserWarning as warning:
        raise ValueError(f"The adapter in {export} is not whole: {warning}") from warning
    # What was loaded is whole, and so is what is saved of it.
    embedder.config.base_model = None
    return embedder.to(dtype).eval()
