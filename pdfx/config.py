"""The configuration of a run: one YAML file, strict, one nested section per component.

An unknown key is an error that names the nearest known one; a value of the wrong kind is an error that names the file, the key and what
was expected. Values can be overridden on the command line as ``section.key=value``.
"""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from pdfx.data_sections import DataSection
from pdfx.guard_sections import GuardsSection
from pdfx.overrides import apply_overrides
from pdfx.recipe_file import ConfigError, read_recipe
from pdfx.saving_section import SavingSection
from pdfx.section import LocalPath, PathText, Section, annotation_of, section_of
from pdfx.urls import scrubbed


class LoraSection(Section):
    """Low-rank adapters through PEFT on the language model (values of the VLM2Vec recipe)."""

    r: int = Field(8, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: list[str] = Field(["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], min_length=1)
    dora: bool = False


class PrefixSection(Section):
    """Deep prefixes: P key/value pairs per path in each chosen decoder layer. The values are ours; the paper does not give them."""

    length: int = Field(48, ge=0)
    layers: Literal["all"] | int | list[int] = "all"
    """``all``, a number m (layers m and up), or a list of layer numbers."""
    init: Literal["normal", "tokens"] = "tokens"
    """``tokens``: the layer's own keys and values of random vocabulary tokens, so that paths start apart; ``normal``: independent draws of ``init_std``."""
    init_std: float = Field(0.02, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    """Own learning rate; the run's ``train.learning_rate`` where null."""


class ModelSection(Section):
    path: PathText
    """Directory or hub name of the backbone."""
    revision: str | None = None
    trust_remote_code: bool = False
    modules: list[LocalPath] = []
    """Python files that register the backbone's own classes with transformers; they travel in the export."""
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    paths: int = Field(4, ge=1)
    prefix: PrefixSection = PrefixSection()
    pooling: Literal["last", "mean"] = "last"
    fusion: Literal["mean", "softmax", "concat"] = "mean"
    matryoshka_dims: list[int] = []
    """Leading dimensions that are trained as embeddings of their own, beside the full one."""
    lora: LoraSection | None = LoraSection()
    """Null for full fine-tuning."""
    train_vision: bool = False
    train_projector: bool | None = None
    """Null: trained under full fine-tuning, frozen under LoRA."""
    cache_vision: bool = False
    """Keep a frozen vision tower's outputs by the pixels' hash; exact, and useless where augmentation changes the pictures."""
    cache_vision_gigabytes: float = Field(4.0, gt=0)
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def check(self):
        if self.paths > 1 and self.prefix.length == 0:
            raise ValueError("prefix.length is 0 with more than one path, so all paths would be the same function; set a length of 1 or more")
        if self.matryoshka_dims and self.fusion == "concat":
            raise ValueError("matryoshka_dims cannot go with fusion 'concat', whose leading dimensions are the first path's; use 'mean' or 'softmax'")
        if self.cache_vision and self.train_vision:
            raise ValueError("cache_vision needs a frozen vision tower; set train_vision or cache_vision to false")
        return self


class InputsSection(Section):
    """How a text and its images become tokens; travels in the export."""

    query_instruction: str = ""
    target_instruction: str = ""
    max_text_tokens: int = Field(512, ge=1)
    """Longer texts are cut at the text, counted and said; images are never cut."""
    image_min_pixels: int | None = Field(None, ge=1)
    image_max_pixels: int | None = Field(None, ge=1)
    """Bounds of a picture's area after resizing (Qwen2-VL)."""
    image_grid_pinpoints: list[tuple[int, int]] | None = None
    """Resolutions (height, width) that a picture may be tiled to (LLaVA-NeXT)."""

    @model_validator(mode="after")
    def check(self):
        if self.image_min_pixels is not None and self.image_max_pixels is not None and self.image_min_pixels > self.image_max_pixels:
            raise ValueError(f"image_min_pixels ({self.image_min_pixels}) is larger than image_max_pixels ({self.image_max_pixels}); lower it")
        return self


class MutualInformationSection(Section):
    """vCLUB, per rank, over all ordered pairs of paths. The values are ours; the paper does not give them."""

    side: Literal["query", "target", "both"] = "both"
    hidden: int = Field(256, ge=1)
    steps: int = Field(2, ge=1)
    """Maximum-likelihood steps of the variational networks per model step."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which ``objective.diversity_weight`` rises linearly from 0; as ``train.warmup_steps`` where null."""


TEMPERATURE_BOUNDS = (0.01, 1.0)
"""Of a learned temperature; those of CLIP (Radford et al., arXiv 2103.00020), whose logit scale lies between 1 and 100."""


class ObjectiveSection(Section):
    temperature: float = Field(0.02, gt=0)
    learn_temperature: bool = False
    symmetric: bool = False
    """Also contrast each target against the queries of all ranks."""
    path_weight: float = Field(1.0, ge=0)
    """Weight of every path's InfoNCE (their sum enters the loss)."""
    fused_weight: float = Field(1.0, ge=0)
    mask_same_target: bool = True
    diversity: Literal["none", "mutual_information", "orthogonality"] = "mutual_information"
    diversity_weight: float = Field(0.01, ge=0)
    mutual_information: MutualInformationSection = MutualInformationSection()

    @model_validator(mode="after")
    def check(self):
        lowest, highest = TEMPERATURE_BOUNDS
        if self.learn_temperature and not lowest <= self.temperature <= highest:
            raise ValueError(f"temperature must be from {lowest:g} to {highest:g} where it is learned; choose one, or set learn_temperature to false")
        if self.path_weight == 0 and self.fused_weight == 0:
            raise ValueError("path_weight and fused_weight are both 0, so nothing would be learned by contrast")
        return self


class TrainSection(SavingSection):
    output_dir: LocalPath
    deepspeed: LocalPath
    """A DeepSpeed JSON, for example ``ds_configs/zero3.json``."""
    max_steps: int | None = Field(None, ge=1)
    num_train_epochs: float | None = Field(None, gt=0)
    per_device_train_batch_size: int = Field(ge=1)
    """Pairs that one rank embeds at once, where ``chunk_tokens`` does not say otherwise."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Chunks of that many pairs whose pairs are all negatives of one another: the update is that of a batch so many times larger."""
    chunk_tokens: int | None = Field(None, ge=1)
    """Tokens of one forward pass at most, padding not counted, each path counted. A rank's batch (the product of the two settings above) is then
    cut by length, not by pairs."""
    chunk_paths: int | None = Field(None, ge=1)
    """Paths that one forward pass runs at most; all where null. The vision tower runs again for each group of paths, unless ``model.cache_vision`` is set."""
    gradient_reduction: Literal["auto", "step", "chunk"] = "auto"
    """Sum gradients over ranks once per ``step`` (less communication) or after each ``chunk`` (less memory under ZeRO 2 and 3, where a rank then never holds
    all gradients whole). ``auto``: by the memory they take."""
    learning_rate: float = Field(2e-5, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the learning rate rises linearly; where null, a tenth of the run's steps and 100 at most."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0)
    """0 switches clipping off."""
    bf16: bool = True
    seed: int = Field(42, ge=0)
    logging_steps: int = Field(10, ge=1)
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on ``data.evaluation``; where null, there is one after the last step."""
    tensorboard: bool = True
    peak_tflops: float | Literal["measure"] = "measure"
    """What one device can do at most, in 10^12 FLOPs per second (989 for bf16 on an H100 SXM), for the share of it that training uses (MFU); ``measure``:
    that of a large matrix product at the start of the run on GPUs. On CPUs MFU is shown only if a number is given."""
    profile_steps: int | None = Field(None, ge=1)
    """Write a torch profiler trace of that many steps on rank 0 into output_dir (``profile.json``)."""

    @model_validator(mode="after")
    def check(self):
        if self.peak_tflops != "measure" and self.peak_tflops <= 0:
            raise ValueError("peak_tflops must be more than 0, or 'measure'")
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("set exactly one of max_steps and num_train_epochs")
        if self.metric_for_best_model is not None and (self.eval_steps is None or self.save_steps % self.eval_steps):
            raise ValueError("metric_for_best_model needs an evaluation at each checkpoint; set eval_steps to a number that divides save_steps")
        return self


class EvaluateSection(Section):
    batch_size: int = Field(32, ge=1)
    recall_at: list[Annotated[int, Field(ge=1)]] = Field([1, 5, 10], min_length=1)
    max_corrupt_share: float = Field(0.01, ge=0, le=1)


class Config(Section):
    """A whole recipe."""

    model: ModelSection
    inputs: InputsSection = InputsSection()
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection
    guards: GuardsSection = GuardsSection()
    evaluate: EvaluateSection = EvaluateSection()


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a recipe and apply ``section.key=value`` overrides, whose values are read as ``overrides.value_of`` says.

    In a run's or a checkpoint's own ``config.yaml``, ``model.trust_remote_code`` does not count; as an override it does.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown (the nearest is named) or given twice, or a value does not fit.
    """
    tree = read_recipe(path := Path(path))
    if isinstance(tree.get("model"), dict) and ((path.parent / "checkpoints").is_dir() or (path.parent / "manifest.json").is_file()):
        # What a run left is data, which gives no consent; whoever gives the command does.
        tree["model"]["trust_remote_code"] = False
    apply_overrides(tree, overrides, Config)
    return parse_config(tree, source=str(path))


def parse_config(tree: dict, source: str = "the configuration") -> Config:
    """Validate a tree of plain values. Raises ConfigError in one sentence per mistake, naming ``source`` and the key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        items = error.errors(include_url=False)[:20]
        raise ConfigError(" ".join(_sentence(item, source) for item in items if not any(_explains(other, item) for other in items))) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that ``load_config`` reads back to an equal one, but for secrets in the URLs of data."""
    return yaml.safe_dump(shown_settings(config), sort_keys=False, allow_unicode=True)


def shown_settings(config: Config) -> dict:
    """The resolved configuration as plain values that may be shown and kept: URLs of data are without passwords and signatures."""
    tree = config.model_dump(mode="json")
    return {**tree, "data": scrubbed(tree["data"])}


def _sentence(item: dict, source: str) -> str:
    key = ".".join(_key(item))
    if item["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(_key(item)[-1], _fields(_key(item)[:-1]), n=1, cutoff=0.0)
        hint = f"did you mean '{'.'.join([*_key(item)[:-1], nearest[0]])}'?" if nearest else "it takes no keys here."
        return f"{source}: unknown key '{key}'; {hint}"
    if item["type"] == "missing":
        return f"{source}: the key '{key}' is missing."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{source}: in '{key}', {message}."
    value = item["input"] if item["type"].startswith(("greater_", "less_")) else _SHORT.repr(item["input"])
    return f"{source}: '{key or 'the recipe'}' is {value}: {message}."


def _explains(other: dict, item: dict) -> bool:
    """Whether ``item`` only says that a value is not of one of several types, and ``other`` what is wrong with it as one of another type."""
    key = _key(item)
    return _key(other)[: len(key)] == key and (len(_key(other)), other["type"] == "value_error") > (len(key), item["type"] == "value_error")


def _key(item: dict) -> tuple[str, ...]:
    """The setting that a mistake is about: its place without numbers in lists and members of unions."""
    key: tuple[str, ...] = ()
    for part in item["loc"]:
        key += (str(part),) if part in _fields(key) else ()
    return (*key, str(item["loc"][-1])[:100]) if item["type"] == "extra_forbidden" else key


def _fields(key: tuple[str, ...]) -> list[str]:
    return list(getattr(section_of(annotation_of(Config, key)), "model_fields", ()))


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
