"""Configuration of a ParallelEmbedder: the backbone's configuration plus everything that decides an embedding."""

from transformers import CONFIG_MAPPING, PretrainedConfig

from .custom_code_files import MODULE_FILES


class ParallelEmbedderConfig(PretrainedConfig):
    """What an export needs to embed as the trainer did.

    Args:
        backbone: configuration (or its dictionary) of the multimodal backbone, for example of Qwen2VLModel.
        paths: K, the number of parallel embeddings per input.
        prefix_length: P, key/value pairs per path and layer; 0 only with one path (a plain embedder).
        prefix_layers: numbers of the decoder layers that hold a prefix.
        prefix_init: ``normal`` or ``tokens`` (see ``prefixes.initialise_prefixes``).
        prefix_init_std: standard deviation of the ``normal`` initialisation.
        pooling: ``last`` (the last token's final normed hidden state) or ``mean``.
        fusion: how K unit embeddings become one: ``mean``, ``softmax`` (learned weights), ``routed`` (an
            input's own weights) or ``concat``.
        matryoshka_dims: leading dimensions trained to work alone.
        attention: ``auto``, ``sdpa`` or ``flash``.
        inputs: how texts and images become tokens (``InputProcessor``'s settings).
        base_model: ``path`` and ``revision`` of a backbone whose weights are not in the export, which then holds what
            was trained; None if it holds all.
        modules: Python files beside the weights that register the backbone's own classes; they run only if remote
            code is trusted.
    """

    model_type = "pdfx_parallel_embedder"

    def __init__(
        self,
        backbone=None,
        paths=1,
        prefix_length=0,
        prefix_layers=(),
        prefix_init="normal",
        prefix_init_std=0.02,
        pooling="last",
        fusion="mean",
        matryoshka_dims=(),
        attention="auto",
        inputs=None,
        base_model=None,
        modules=MODULE_FILES,
        **kwargs,
    ):
        if isinstance(backbone, dict):
            model_type = backbone.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"The backbone's model type '{model_type}' is neither known to the installed transformers nor "
                    "registered by the model's modules."
                )
            backbone = CONFIG_MAPPING[model_type](**backbone)
        self.backbone = backbone
        self.paths = paths
        self.prefix_length = prefix_length
        self.prefix_layers = list(prefix_layers)
        self.prefix_init = prefix_init
        self.prefix_init_std = prefix_init_std
        self.pooling = pooling
        self.fusion = fusion
        self.matryoshka_dims = list(matryoshka_dims)
        self.attention = attention
        self.inputs = dict(inputs or {})
        self.base_model = base_model
        self.modules = list(modules)
        if paths < 1:
            raise ValueError(f"paths must be 1 or more, not {paths}.")
        if paths > 1 and (prefix_length == 0 or not self.prefix_layers):
            raise ValueError(
                "Without prefixes all paths are the same function: set prefix_length and prefix_layers, or paths to 1."
            )
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """D, the dimension of one path's embedding."""
        return self.backbone.get_text_config().hidden_size

    @property
    def fused_size(self) -> int:
        """F, the dimension of the fused embedding."""
        return self.hidden_size * (self.paths if self.fusion == "concat" else 1)


def new_config(backbone_config, inputs: dict | None, prefix_layers, **settings) -> ParallelEmbedderConfig:
    """Configuration of an embedder; ``prefix_layers`` is ``all``, a number m (layers m and up), or a list."""
    layers = backbone_config.get_text_config().num_hidden_layers
    if prefix_layers == "all":
        prefix_layers = range(layers)
    elif isinstance(prefix_layers, int):
        prefix_layers = range(prefix_layers, layers)
    inputs = {name: value for name, value in (inputs or {}).items() if value is not None}
    if "image_grid_pinpoints" in inputs:
        # The backbone counts an image's tokens from its own configuration, which must agree with the processor's.
        backbone_config.image_grid_pinpoints = [list(pair) for pair in inputs["image_grid_pinpoints"]]
    return ParallelEmbedderConfig(
        backbone=backbone_config, inputs=inputs, prefix_layers=list(prefix_layers), **settings
    )
