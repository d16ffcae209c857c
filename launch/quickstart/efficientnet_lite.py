"""EfficientNet-Lite0 as a transformers vision tower for LLaVA-NeXT; importing this file registers it under
``efficientnet_lite``.

The network is that of Tan & Le, "EfficientNet" (arXiv:1905.11946), in the variant published as EfficientNet-Lite: B0's
stages without squeeze-and-excitation, with ReLU6 for the activation, and the same stem and head width at every size.
The file needs torch and transformers alone, because it travels inside an export as remote code.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

STEM_WIDTH, HEAD_WIDTH, STRIDE = 32, 1280, 32
# (kernel size, blocks, stride of the first block, expansion, width) of each stage.
STAGES = (
    (3, 1, 1, 1, 16),
    (3, 2, 2, 6, 24),
    (5, 2, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112),
    (5, 4, 2, 6, 192),
    (3, 1, 1, 6, 320),
)


class EfficientNetLiteConfig(PretrainedConfig):
    """``image_size`` pixels a side, a multiple of 32; every ``patch_size`` pixels a side become one token, also a
    multiple of 32."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 128, patch_size: int = 64, **kwargs):
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = HEAD_WIDTH
        super().__init__(**kwargs)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the stored statistics, in train mode too: an image's features never depend on its
    batch."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, which is uneven for strides, then normalisation, then ReLU6 unless
    ``linear``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = FrozenBatchNorm(outputs, eps=1e-3)
        self.linear = linear
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        excess = (
            self.conv.kernel_size[0] - self.conv.stride[0]
        )  # exact for sides that the stride divides, as all sides here are
        if excess > 0:
            x = functional.pad(x, (excess // 2, excess - excess // 2) * 2)
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu6(x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a skip connection where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, outputs, linear=True)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EfficientNetLiteModel(PreTrainedModel):
    """Pixels ``[B, 3, image_size, image_size]`` to ``hidden_states = ([B, T, 1280],)`` with ``T = (image_size /
    patch_size)^2``."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        if config.image_size % config.patch_size or config.patch_size % STRIDE:
            raise ValueError(
                f"image_size {config.image_size} must be a multiple of patch_size {config.patch_size}, and that one "
                f"of {STRIDE}."
            )
        self.stem = ConvNorm(3, STEM_WIDTH, 3, 2)
        blocks, inputs = [], STEM_WIDTH
        for kernel, repeats, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(inputs, HEAD_WIDTH)
        self.post_init()

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """Features ``[B, 1280, H / 32, W / 32]`` of normalised pixels ``[B, 3, H, W]``; H and W are multiples of 32."""
        x = self.stem(pixel_values.to(self.stem.conv.weight.dtype))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutput:
        """Average the feature map over each token's square; further arguments of other towers (such as output switches)
        have no effect."""
        tokens = (
            functional.avg_pool2d(self.feature_map(pixel_values), self.config.patch_size // STRIDE)
            .flatten(2)
            .transpose(1, 2)
        )
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


def convert_weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the published PyTorch file ``efficientnet-lite0`` to this module's names; the classifier is
    left out."""
    parts = {
        "_expand_conv": "expand.conv",
        "_depthwise_conv": "depthwise.conv",
        "_project_conv": "project.conv",
        "_bn0": "expand.norm",
        "_bn1": "depthwise.norm",
        "_bn2": "project.norm",
    }
    outer = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    renamed = {}
    for name, tensor in published.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            index, part, leaf = block.groups()
            renamed[f"blocks.{index}.{parts[part]}.{leaf}"] = tensor
        elif not name.startswith("_fc."):
            part, leaf = name.split(".")
            renamed[f"{outer[part]}.{leaf}"] = tensor
    return renamed


def load_pretrained(path: str, config: EfficientNetLiteConfig) -> EfficientNetLiteModel:
    """A model with the published ImageNet weights at ``path`` (a PyTorch file of tensors)."""
    model = EfficientNetLiteModel(config)
    model.load_state_dict(convert_weights(torch.load(path, map_location="cpu", weights_only=True)))
    return model.eval()


AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
