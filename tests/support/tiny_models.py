"""Small real backbones with real processors: Qwen2-VL and LLaVA-NeXT from configurations, random weights, a byte-level
BPE tokenizer."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextModel,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

FAMILIES = ("qwen2_vl", "llava_next")
QWEN_TOKENS = ["<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
LLAVA_TOKENS = ["<s>", "</s>", "<image>", "<pad>"]
SENTENCES = [
    "a red square on a blue field",
    "two green circles",
    "the quick brown fox jumps over the lazy dog",
    "embedding of pictures and texts",
    "eine gelbe Scheibe",
]


def tiny_tokenizer(special: list[str], **roles) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences; every string has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def tiny_backbone(family: str, directory: Path | str, layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """Write a tiny backbone of a family with its processor, once per directory, and return the directory."""
    directory = Path(directory)
    if (directory / "config.json").exists():
        return directory
    torch.manual_seed(seed)
    model, processor = (_qwen2_vl if family == "qwen2_vl" else _llava_next)(layers, hidden)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Wider than the usual 0.02, so that small differences of inputs are not lost among rounding errors.
                parameter.normal_(0, 0.15)
    processor.save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def text_settings(layers: int, hidden: int, vocabulary: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }


def _qwen2_vl(layers: int, hidden: int):
    end, *markers = QWEN_TOKENS
    roles = dict(zip(("vision_start_token", "vision_end_token", "image_token", "video_token"), markers, strict=True))
    tokenizer = tiny_tokenizer(QWEN_TOKENS, eos_token=end, pad_token=end, extra_special_tokens=roles)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=None,
    )
    ids = {f"{role}_id": tokenizer.convert_tokens_to_ids(token) for role, token in roles.items()}
    settings = text_settings(layers, hidden, len(tokenizer))
    quarter = hidden // settings["num_attention_heads"] // 8
    text = settings | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [quarter, quarter, 2 * quarter],
        },
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": hidden,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2VLModel(config), processor


def _llava_next(layers: int, hidden: int):
    tokenizer = tiny_tokenizer(
        LLAVA_TOKENS,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pinpoints = [[56, 28], [28, 56], [56, 56]]
    size = {"shortest_edge": 28}
    crop = {"height": 28, "width": 28}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
    }
    text = text_settings(layers, hidden, len(tokenizer)) | {
        "model_type": "llama",
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaNextConfig(
        text_config=text, vision_config=vision, image_token_index=image, image_grid_pinpoints=pinpoints
    )
    return LlavaNextModel(config), processor


def picture(seed: int, size: tuple[int, int] = (56, 42)) -> Image.Image:
    """A picture of random colour blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize(size, Image.Resampling.NEAREST)


def items(kind: str, count: int = 4) -> list[dict]:
    """Inputs of differing length: ``text``, ``image`` (pictures with texts of several sizes) or ``mixed`` (some with
    two pictures, some with none)."""
    texts = [SENTENCES[i % len(SENTENCES)] * (1 + i % 3) for i in range(count)]
    images = {"text": [0] * count, "image": [1] * count, "mixed": [i % 3 for i in range(count)]}[kind]
    sizes = [(56, 42), (28, 56), (80, 30)]
    return [
        {"text": texts[i], "images": [picture(7 * i + j, sizes[(i + j) % 3]) for j in range(images[i])]}
        for i in range(count)
    ]
