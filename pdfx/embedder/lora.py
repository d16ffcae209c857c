"""What is trained: LoRA injected into the decoder through PEFT, and the rules that freeze everything else."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pdfx.config import LoraSection, ModelSection
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder
from pdfx.model.prefixes import prefixes_of


def apply_lora(embedder: ParallelEmbedder, lora: LoraSection) -> None:
    """Put low-rank adapters (Hu et al., arXiv 2106.09685; DoRA: arXiv 2402.09353) into the decoder's linear modules, in
    place.

    Only the decoder is searched, so that a vision tower whose modules have the same names stays as it is. The initial
    values follow from torch's seed as it was last set, not from how many numbers the loading of weights has drawn
    since.

    Raises:
        UserError: a target names no linear module of the decoder.
    """
    decoder = embedder.decoder
    linear = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise UserError(
                f"model.lora.targets names '{target}', which no linear module of the decoder is called; it has "
                f"{', '.join(sorted(linear))}."
            )
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_dora=lora.dora,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        inject_adapter_in_model(settings, decoder)


def adapted_modules(embedder: ParallelEmbedder) -> dict[str, BaseTunerLayer]:
    """The decoder's modules with adapters, by their names in the embedder."""
    return {name: module for name, module in embedder.named_modules() if isinstance(module, BaseTunerLayer)}


def merged_weight(module: BaseTunerLayer) -> torch.Tensor:
    """The weight of an adapted module with the adapter folded in, in place.

    Raises:
        ValueError: it is not finite.
    """
    module.merge(safe_merge=True)
    return module.get_base_layer().get_parameter("weight").detach()


def remove_adapters(embedder: ParallelEmbedder) -> ParallelEmbedder:
    """Put the plain modules back, in place, with the weights that they have; without adapters nothing happens."""
    for name, module in adapted_modules(embedder).items():
        parent, _, child = name.rpartition(".")
        setattr(embedder.get_submodule(parent), child, module.get_base_layer())
    if hasattr(embedder.decoder, "peft_config"):
        del embedder.decoder.peft_config
    return embedder


def set_trainable(embedder: ParallelEmbedder, model: ModelSection) -> None:
    """Say of each parameter whether it is trained.

    Prefixes and fusion always are. The language model is under full fine-tuning; under LoRA only its adapters are. The
    vision tower follows ``train_vision``; the projector, and what the backbone owns directly (LLaVA-NeXT's newline
    embedding), follow ``train_projector`` or, if that is null, the language model.
    """
    full = model.lora is None
    train_projector = full if model.train_projector is None else model.train_projector
    embedder.requires_grad_(False)
    embedder.decoder.requires_grad_(full)
    for name, parameter in embedder.decoder.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    embedder.family.vision_of(embedder.backbone).requires_grad_(model.train_vision)
    # After the tower, because some families keep the projector inside it.
    embedder.backbone.get_submodule(embedder.family.projector).requires_grad_(train_projector)
    for parameter in embedder.backbone.parameters(recurse=False):
        parameter.requires_grad_(train_projector)
    for prefix in prefixes_of(embedder):
        prefix.requires_grad_(True)
    embedder.fusion.requires_grad_(True)
