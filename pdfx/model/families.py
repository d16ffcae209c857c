"""What differs between families of multimodal models: where parts are, and how a prompt marks an image."""

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

Decoder = Any
"""A language model of transformers: a module with ``config`` and ``layers``, for which there is no common type."""


@dataclass(frozen=True)
class Family:
    """One family of backbones.

    Attributes:
        model_type: transformers' name of it.
        decoder: attribute path of the language model that receives merged embeddings.
        vision: attribute path of the vision tower.
        projector: attribute path of what maps the tower's features into the decoder.
        image_prompt: text that stands for one image; the processor expands the image token in it.
        reserved: strings with a meaning of their own in the prompt, blanked out of a user's text.
        image_settings: the settings of ``inputs`` that bound its images.
        transformers: the first version that reads an export's weights by the names they have.
    """

    model_type: str
    decoder: str
    vision: str
    projector: str
    image_prompt: str
    reserved: tuple[str, ...]
    image_settings: tuple[str, ...]
    transformers: tuple[int, int] = (5, 0)

    def decoder_of(self, backbone: nn.Module) -> Decoder:
        return backbone.get_submodule(self.decoder)

    def vision_of(self, backbone: nn.Module) -> nn.Module:
        return backbone.get_submodule(self.vision)

    def trains_vision(self, backbone: nn.Module) -> bool:
        """Whether a parameter is trained that only images reach; some are the backbone's own (line ends)."""
        parts = (self.vision_of(backbone), backbone.get_submodule(self.projector))
        parameters = [*backbone.parameters(recurse=False), *(own for part in parts for own in part.parameters())]
        return any(parameter.requires_grad for parameter in parameters)


FAMILIES = {
    family.model_type: family
    for family in (
        # VLM2Vec gives Qwen2-VL a bare image token; we keep the model's own vision-start and vision-end tokens, as in
        # its pretraining.
        Family(
            "qwen2_vl",
            "language_model",
            "visual",
            "visual.merger",
            "<|vision_start|><|image_pad|><|vision_end|>",
            (
                "<|vision_start|>",
                "<|image_pad|>",
                "<|video_pad|>",
                "<|vision_end|>",
                "<|vision_pad|>",
                "<|endoftext|>",
                "<|im_start|>",
                "<|im_end|>",
            ),
            ("image_min_pixels", "image_max_pixels"),
        ),
        Family(
            "llava_next",
            "language_model",
            "vision_tower",
            "multi_modal_projector",
            "<image>\n",
            ("<image>", "<s>", "</s>"),
            ("image_grid_pinpoints",),
            # CLIP's tower had other names before.
            transformers=(5, 6),
        ),
    )
}


def family_of(backbone_config) -> Family:
    """The family of a backbone's configuration. Raises ValueError without one, or for too old a transformers."""
    family = family_of_type(backbone_config.model_type)
    if tuple(map(int, transformers.__version__.split(".")[:2])) < family.transformers:
        needed = ".".join(map(str, family.transformers))
        raise ValueError(
            f"A '{family.model_type}' backbone needs transformers {needed} or later, and {transformers.__version__} "
            "is installed: it would draw new random weights."
        )
    return family


def family_of_type(model_type: str | None) -> Family:
    """The same by its name alone."""
    if model_type not in FAMILIES:
        if model_type is None:
            raise ValueError("Its config.json is missing, or names no model_type.")
        raise ValueError(f"Backbones of type '{model_type}' are not supported; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]
