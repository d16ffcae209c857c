"""ParallelEmbedder: one multimodal backbone, K deep prefixes, K unit embeddings per input."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import ModelOutput

from .adapted import load_adapted
from .attention import ATTENTION_NAME
from .configuration import ParallelEmbedderConfig
from .door import packed_decoder
from .families import family_of
from .fusion import Fusion, pool, unit
from .own_modules import load_export_modules
from .packing import Packing
from .prefixes import Gathered, attach_prefixes, initialise_prefixes
from .processing import InputProcessor, append_inputs


@dataclass
class EmbedderOutput(ModelOutput):
    """Embeddings of n inputs.

    Attributes:
        paths: float32 ``[n, K, D]``, unit rows.
        fused: float32 ``[n, F]``, unit rows.
        fusion_logits: float32 ``[K]``, what a learned fusion weighs all paths with; None where the weights are not learned.
    """

    paths: torch.Tensor | None = None
    fused: torch.Tensor | None = None
    fusion_logits: torch.Tensor | None = None


class ParallelEmbedder(PreTrainedModel):
    """A multimodal LLM that gives K embeddings per input (Parallel Decoupling Framework, arXiv 2511.01588; the construction is ours).

    The vision tower, the projector and the token embedding run once per input. At the decoder's door the padded batch becomes one row of tokens without
    padding, repeated for each path; every layer's attention prepends the path's own keys and values.

    Attributes:
        processor: turns texts and images into inputs; set by ``from_backbone`` and ``from_pretrained``.
        vision_agreement: tells whether any rank needs the vision tower in this forward pass, given whether this one does.
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
        self.backbone = backbone if backbone is not None else AutoModel.from_config(config.backbone)
        decoder = self.family.decoder_of(self.backbone)
        decoder.config._attn_implementation = ATTENTION_NAME
        attach_prefixes(decoder, config)
        self.fusion = Fusion(config.fusion, config.paths).to(self.backbone.dtype)
        self.processor: InputProcessor | None = None
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
            ValueError: unsupported family or contradictory settings.
            OSError: there is no such backbone.
        """
        backbone = AutoModel.from_pretrained(path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
        processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        embedder = cls(new_config(backbone.config, inputs, prefix_layers, dtype=dtype, **settings), backbone)
        initialise_prefixes(embedder.decoder, embedder.config, seed, gathered)
        embedder.attach_processor(processor)
        return embedder

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, trust_remote_code: bool = False, **kwargs):
        """Load an exported embedder together with its processor.

        Raises:
            ValueError: the export brings code of its own (a vision tower, say) and ``trust_remote_code`` is not set.
        """
        load_export_modules(pretrained_model_name_or_path, trust_remote_code)
        config = kwargs.get("config") or cls.config_class.from_pretrained(pretrained_model_name_or_path, revision=kwargs.get("revision"))
        if config.base_model:
            embedder = load_adapted(cls, pretrained_model_name_or_path, config, kwargs.get("dtype"), kwargs.get("revision"), trust_remote_code)
        else:
            embedder = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = embedder[0] if isinstance(embedder, tuple) else embedder
        # The processor is always one of transformers' own classes; the export's code is never needed for it.
        model.attach_processor(AutoProcessor.from_pretrained(pretrained_model_name_or_path, revision=kwargs.get("revision"), trust_remote_code=False))
        return embedder

    def attach_processor(self, processor) -> None:
        """Use transformers' ``processor`` with the input settings of the configuration."""
        self.processor = InputProcessor(processor, self.family, self.config.inputs)
        self._dummy = self.processor.dummy()

    @property
    def decoder(self) -> PreTrainedModel:
        """The language model that reads merged embeddings."""
        return self.family.decoder_of(self.backbone)

    def train(self, mode: bool = True):
        """Training mode, except for a frozen vision tower: its outputs must not change (dropout, batch statistics)."""
        super().train(mode)
        vision = self.family.vision_of(self.backbone)
        if not any(parameter.requires_grad for parameter in vision.parameters()):
            vision.eval()
        return self

    def forward(self, inputs: dict[str, torch.Tensor], paths: list[int] | None = None) -> EmbedderOutput:
        """Embed a padded batch of n inputs.

        Args:
            inputs: what ``InputProcessor`` returns; padding may be on either side.
            paths: numbers of the paths to run, all by default.

        Raises:
            ValueError: a path that does not exist, or an input without a token.
        """
        count = len(inputs["input_ids"])
        # ZeRO-3 applies an earlier step's gradient to parameters that the first backward pass does not reach, so trained vision takes part in each.
        needed = "pixel_values" in inputs or (self.training and self.trains_vision)
        missing_images = self.vision_agreement(needed) and "pixel_values" not in inputs
        if missing_images:
            inputs = append_inputs(inputs, self._dummy_inputs())
        chosen = self._chosen(paths, inputs["input_ids"].device)
        states, packing = self._decode(inputs, chosen)
        embeddings = pool(states, packing, self.config.pooling)
        if missing_images:
            # Times zero: the dummy must take part in the backward pass, whose collectives the other ranks run too.
            embeddings = embeddings[:count] + 0 * embeddings[count:].sum()
        fused, logits = self.fusion(embeddings, chosen)
        return EmbedderOutput(paths=embeddings, fused=fused, fusion_logits=logits)

    def _decode(self, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> tuple[torch.Tensor, Packing]:
        """Final normed states ``[1, K*N, D]`` and the packing that explains them."""
        inputs = dict(inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        config = self.config
        first = min(config.prefix_layers, default=0)
        with packed_decoder(self.decoder, inputs["attention_mask"], chosen, first, config.attention) as packing:
            output = self.backbone(**inputs, use_cache=False)
        return output.last_hidden_state, packing

    def _chosen(self, paths: list[int] | None, device) -> torch.Tensor:
        chosen = list(range(self.config.paths)) if paths is None else list(paths)
        wrong = [path for path in chosen if not 0 <= path < self.config.paths]
        if wrong or not chosen:
            raise ValueError(f"Paths must be among 0 to {self.config.paths - 1}, not {chosen}.")
        return torch.tensor(chosen, device=device)

    @property
    def trains_vision(self) -> bool:
        """Whether a parameter is trained that only images reach: in the vision tower, the projector, or of the backbone itself (LLaVA-NeXT's line ends)."""
        parts = (self.family.vision_of(self.backbone), self.backbone.get_submodule(self.family.projector))
        parameters = [*self.backbone.parameters(recurse=False), *(parameter for part in parts for parameter in part.parameters())]
        return any(parameter.requires_grad for parameter in parameters)

    def _dummy_inputs(self) -> dict[str, torch.Tensor]:
        if self._dummy is None:
            raise ValueError("This rank has no image where another has one, and no processor to make a stand-in; call attach_processor first.")
        return self._dummy

    @torch.no_grad()
    def embed(
        self, items: list[dict], side: str = "query", batch_size: int = 32, paths: list[int] | None = None, truncate_dim: int | None = None
    ) -> EmbedderOutput:
        """Embed texts and images for use: no gradient, evaluation mode, results on the CPU.

        Args:
            items: ``{"text": str, "images": [PIL.Image, ...]}``; either may be missing.
            side: ``query`` or ``target``, which chooses the instruction.
            truncate_dim: keep the leading dimensions only and normalise again (Matryoshka).
        """
        if self.processor is None:
            raise ValueError("The embedder has no processor; load it with from_pretrained or call attach_processor.")
        if side not in ("query", "target"):
            raise ValueError(f"side must be 'query' or 'target', not '{side}'.")
        items = [{"text": item.get("text") or "", "images": list(item.get("images") or [])} for item in items]
        training = self.training
        self.eval()
        outputs = []
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            inputs, _ = self.processor(batch, [side] * len(batch))
            outputs.append(self({name: tensor.to(self.device) for name, tensor in inputs.items()}, paths))
        self.train(training)
        return join_outputs(outputs, truncate_dim)


def join_outputs(outputs: list[EmbedderOutput], truncate_dim: int | None = None) -> EmbedderOutput:
    """Outputs of consecutive batches as one, on the CPU, optionally cut to leading dimensions and normalised again."""
    joined = [torch.cat([output[name].cpu() for output in outputs]) for name in ("paths", "fused")]
    if truncate_dim is not None:
        joined = [unit(tensor[..., :truncate_dim]) for tensor in joined]
    return EmbedderOutput(paths=joined[0], fused=joined[1])


def new_config(backbone_config, inputs: dict | None, prefix_layers, **settings) -> ParallelEmbedderConfig:
    """Configuration of an embedder on a backbone; ``prefix_layers`` is ``all``, a number m (layers m and up), or a list."""
    layers = backbone_config.get_text_config().num_hidden_layers
    if prefix_layers == "all":
        prefix_layers = range(layers)
    elif isinstance(prefix_layers, int):
        prefix_layers = range(prefix_layers, layers)
    inputs = {name: value for name, value in (inputs or {}).items() if value is not None}
    if "image_grid_pinpoints" in inputs:
        # The backbone counts an image's tokens from its own configuration, which must agree with the processor's.
        backbone_config.image_grid_pinpoints = [list(pair) for pair in inputs["image_grid_pinpoints"]]
    return ParallelEmbedderConfig(backbone=backbone_config, inputs=inputs, prefix_layers=list(prefix_layers), **settings)


AutoConfig.register(ParallelEmbedderConfig.model_type, ParallelEmbedderConfig, exist_ok=True)
AutoModel.register(ParallelEmbedderConfig, ParallelEmbedder, exist_ok=True)
ParallelEmbedderConfig.register_for_auto_class()
ParallelEmbedder.register_for_auto_class("AutoModel")
