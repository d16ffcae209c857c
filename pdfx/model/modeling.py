"""ParallelEmbedder: one multimodal backbone, K deep prefixes, K unit embeddings per input."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel

from .attention import ATTENTION_NAME
from .configuration import ParallelEmbedderConfig, new_config
from .custom_code import load_export_modules, require_modules, write_own_modules
from .custom_code_files import MODULE_FILES  # noqa: F401  transformers 5.8 to 5.10 copy only what a file imports by itself.
from .families import Decoder, family_of
from .fusion import EmbedderOutput, Fusion, join_outputs, pool
from .loading import as_dtype, backbone_config, load_adapted, load_whole, record_dtype
from .packing import Packing, attach_hooks, chosen_paths, packed_decoder
from .picture_bounds import ImageError  # noqa: F401  see custom_code_files
from .pictures import decode_image  # noqa: F401
from .prefixes import Gathered, attach_prefixes, initialise_prefixes
from .processing import InputProcessor, append_inputs, checked_items
from .texts import is_blank  # noqa: F401

LOCK = Lock()
"""Held while a tokenizer works, whose padding is a state of its own, and while a model enters or leaves evaluation."""


class ParallelEmbedder(PreTrainedModel):
    """A multimodal LLM that gives K embeddings per input (Parallel Decoupling Framework, arXiv 2511.01588; the
    construction is ours).

    The vision tower, the projector and the token embedding run once per input. At the decoder's door the padded batch
    becomes one row of tokens without padding, repeated for each path; every layer's attention prepends the path's own
    keys and values.

    >>> import pdfx
    >>> from PIL import Image
    >>> model = pdfx.ParallelEmbedder.from_pretrained("export")
    >>> queries = model.embed([{"text": "a red square"}, {"text": "a dog"}], side="query")
    >>> targets = model.embed([{"images": [Image.new("RGB", (32, 32), "red")]}], side="target")
    >>> queries.paths.shape  # [n, K, D]
    torch.Size([2, 3, 32])
    >>> (queries.fused @ targets.fused.T).shape  # one score per pair
    torch.Size([2, 1])

    Args:
        config: what decides an embedding.
        backbone: one with random weights if None.

    Attributes:
        processor: turns texts and images into inputs; set by ``from_backbone`` and ``from_pretrained``.
        module_files: the Python files of ``config.modules``, which ``save_pretrained`` copies.
        vision_agreement: returns whether any rank needs the vision tower in this forward pass, given whether this one
            does.
    """

    config_class = ParallelEmbedderConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = []

    def __init__(self, config: ParallelEmbedderConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.family = family_of(config.backbone)
        # transformers sets the default type to what is to be loaded, of which the backbone's own configuration need not
        # know.
        self.backbone = backbone or AutoModel.from_config(config.backbone, dtype=torch.get_default_dtype())
        record_dtype(config, self.backbone.dtype)
        decoder = self.family.decoder_of(self.backbone)
        decoder.config._attn_implementation = ATTENTION_NAME
        attach_prefixes(decoder, config)
        attach_hooks(decoder, min(config.prefix_layers, default=0))
        self.fusion = Fusion(config.fusion, config.paths, config.hidden_size).to(self.backbone.dtype)
        self.processor: InputProcessor | None = None
        self.module_files: list[Path] = []
        self._evaluations, self._was_training = 0, False
        self._dummy: dict[str, torch.Tensor] | None = None
        self.vision_agreement: Callable[[bool], bool] = bool
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        path: str,
        *,
        seed: int = 0,
        inputs: dict | None = None,
        prefix_layers: str | int | list[int] = "all",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        gathered: Gathered = nullcontext,
        **settings,
    ):
        """A new embedder on pretrained weights.

        Args:
            path: directory or hub name of a supported backbone.
            seed: draws the prefixes.
            inputs: settings of ``InputProcessor``.
            prefix_layers: ``all``, a number m (layers m and up), or a list.
            gathered: makes parameters whole that transformers loaded into shards.
            settings: further fields of ``ParallelEmbedderConfig``.

        Raises:
            ValueError: unsupported family, contradictory settings, or weights that are missing, of another shape or not
                finite.
            OSError: the backbone was not found.
        """
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = backbone_config(path, **hub)
        backbone, _ = load_whole(AutoModel.from_pretrained, path, config=config, dtype=dtype, **hub)
        embedder = cls(new_config(backbone.config, inputs, prefix_layers, **settings), backbone)
        initialise_prefixes(embedder.decoder, embedder.config, seed, gathered)
        embedder.attach_processor(AutoProcessor.from_pretrained(path, **hub))
        return embedder

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, trust_remote_code: bool = False, **kwargs):
        """Load an exported embedder together with its processor, in the type that it was written in or in ``dtype``.

        Raises:
            ValueError: a weight is missing, unknown, of another shape or not finite; the backbone needs a later
                transformers; or the export brings code of its own (a vision tower, say) and ``trust_remote_code`` is
                not set.
        """
        export = pretrained_model_name_or_path
        revision: Any = kwargs.get("revision")
        wants_info = kwargs.pop("output_loading_info", False)
        files = load_export_modules(export, revision, trust_remote_code)
        config = kwargs.get("config") or cls.config_class.from_pretrained(export, revision=revision)
        dtype = as_dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)), config.dtype)
        if config.base_model:
            model, info = load_adapted(cls, export, config, dtype, revision), {}
        else:
            model, info = load_whole(super().from_pretrained, export, *args, exact=True, dtype=dtype, **kwargs)
        model.module_files = files
        # The processor is always one of transformers' own classes; the export's code is never needed for it.
        model.attach_processor(AutoProcessor.from_pretrained(export, revision=revision, trust_remote_code=False))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write weights, configuration, this code, the processor and the backbone's own modules: all that
        ``from_pretrained`` reads, by the names it knows.

        Raises:
            ValueError: the files of ``config.modules`` are not known, or ``push_to_hub`` is asked for, which sends no
                processor; ``model.push_to_hub`` does.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "save_pretrained(push_to_hub=True) would leave the processor behind; call push_to_hub, which sends "
                "all files."
            )
        require_modules(self.module_files, self.config.modules)
        record_dtype(self.config, self.dtype)
        super().save_pretrained(save_directory, *args, save_original_format=False, **kwargs)
        write_own_modules(Path(save_directory), self.module_files)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory)

    def attach_processor(self, processor) -> None:
        """Use transformers' ``processor`` with the input settings of the configuration."""
        self.processor = InputProcessor(processor, self.family, self.config.inputs)
        self._dummy = self.processor.dummy()

    @property
    def decoder(self) -> Decoder:
        """The language model that reads merged embeddings."""
        return self.family.decoder_of(self.backbone)

    def train(self, mode: bool = True):
        """Training mode, except for a frozen vision tower: its outputs must not change (dropout, batch statistics)."""
        super().train(mode)
        vision = self.family.vision_of(self.backbone)
        if not any(parameter.requires_grad for parameter in vision.parameters()):
            vision.eval()
        return self

    def forward(
        self, inputs: dict[str, torch.Tensor], paths: list[int] | None = None, fused: bool = True
    ) -> EmbedderOutput:
        """Embed a padded batch of n inputs.

        Args:
            inputs: what ``InputProcessor`` returns; padding may be on either side.
            paths: numbers of the paths to run, all by default.
            fused: whether to fuse them; a trainer that runs some of the paths at a time does so itself.

        Raises:
            ValueError: a path that does not exist, or an input without a token.
        """
        count = len(inputs["input_ids"])
        # ZeRO-3 applies an earlier step's gradient to parameters that the first backward pass does not reach, so
        # trained vision takes part in each.
        needed = "pixel_values" in inputs or (self.training and self.family.trains_vision(self.backbone))
        missing_images = self.vision_agreement(needed) and "pixel_values" not in inputs
        if missing_images:
            if self._dummy is None:
                raise ValueError(
                    "This rank has no image while another one has, and no processor to make a stand-in; call "
                    "attach_processor first."
                )
            inputs = append_inputs(inputs, self._dummy)
        chosen = chosen_paths(paths, self.config.paths).to(inputs["input_ids"].device)
        states, packing = self._decode(inputs, chosen)
        embeddings = pool(states, packing, self.config.pooling)
        if missing_images:
            # Times zero: the dummy must take part in the backward pass, whose collectives the other ranks run too.
            embeddings = embeddings[:count] + 0 * embeddings[count:].sum()
        together, logits = self.fusion(embeddings, chosen, fused)
        return EmbedderOutput(paths=embeddings, fused=together, fusion_logits=logits)

    def _decode(self, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> tuple[torch.Tensor, Packing]:
        """Final normed states ``[1, K*N, D]`` and the packing that explains them."""
        inputs = dict(inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        share_trunk = min(self.config.prefix_layers, default=0) > 0
        with packed_decoder(inputs["attention_mask"], chosen, share_trunk, self.config.attention) as packing:
            output = self.backbone(**inputs, use_cache=False)
        return output.last_hidden_state, packing

    @torch.no_grad()
    def embed(
        self,
        items: list[dict],
        side: str = "query",
        batch_size: int = 32,
        paths: list[int] | None = None,
        truncate_dim: int | None = None,
    ) -> EmbedderOutput:
        """Embed texts and images for use: no gradient, evaluation mode, results on the CPU.

        Threads may call it side by side.

        Args:
            items: ``{"text": str, "images": [picture, ...]}``; either may be missing. A picture is a path, a file's
                bytes or a PIL image.
            side: ``query`` or ``target``, which chooses the instruction.
            batch_size: items of one forward pass.
            truncate_dim: keep the leading dimensions of a path only, 1 to D, and normalise again (Matryoshka); a
                concatenation is then one of cut paths.

        Raises:
            ValueError: an argument that has no meaning.
            ItemError: an item cannot be embedded; it is named by its number. A text that is cut gives a warning
                instead.
        """
        if self.processor is None:
            raise ValueError("The embedder has no processor; load it with from_pretrained or call attach_processor.")
        items = checked_items(items, side)
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}.")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.config.hidden_size:
            raise ValueError(
                f"truncate_dim must be among 1 to {self.config.hidden_size}, the dimensions of a path, not "
                f"{truncate_dim}."
            )
        outputs, truncated = [], 0
        with self._evaluation():
            for start in range(0, len(items), batch_size):
                with LOCK:
                    inputs, cut = self.processor.prepare(items[start : start + batch_size], side, start)
                truncated += cut
                outputs.append(self({name: tensor.to(self.device) for name, tensor in inputs.items()}, paths))
        if truncated:
            limit = self.processor.settings["max_text_tokens"]
            warnings.warn(
                f"{truncated} of {len(items)} texts are longer than max_text_tokens ({limit}) and were cut there.",
                stacklevel=3,
            )
        return join_outputs(outputs, truncate_dim, self.config.fusion)

    @contextmanager
    def _evaluation(self):
        """Evaluation mode while any thread is within the block; the last one to leave sets the mode back."""
        with LOCK:
            if self._evaluations == 0:
                self._was_training = self.training
                self.eval()
            self._evaluations += 1
        try:
            yield
        finally:
            with LOCK:
                self._evaluations -= 1
                if self._evaluations == 0:
                    self.train(self._was_training)


AutoConfig.register(ParallelEmbedderConfig.model_type, ParallelEmbedderConfig, exist_ok=True)
AutoModel.register(ParallelEmbedderConfig, ParallelEmbedder, exist_ok=True)
ParallelEmbedderConfig.register_for_auto_class()
ParallelEmbedder.register_for_auto_class("AutoModel")
