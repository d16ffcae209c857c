"""The model and the data of the benchmarks: Qwen2-VL with the 2B's proportions at a quarter of its width and depth,
photographs, and prose of mixed lengths.

Nothing is downloaded: the photographs come with scikit-image, the prose is Python's own reference manual, weights are
random.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from pdfx.config import Config, parse_config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.data import Batch, Chunk
from pdfx.data.batch import filler
from pdfx.distributed.world import World, join_world
from pdfx.embedder.build import build_embedder
from pdfx.model import ParallelEmbedder
from pdfx.objective import Objective
from pdfx.train.engine import TrainingModule, start_engine
from pdfx.train.step import Stepper

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
ROLES = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
END = "<|endoftext|>"

WIDTHS = {
    "quarter": {"text": (384, 7, 6, 1, 2240), "vision": (320, 8, 4), "vocabulary": 4096},
    "small": {"text": (128, 3, 2, 1, 768), "vision": (80, 3, 2), "vocabulary": 4096},
    "tiny": {"text": (64, 2, 2, 1, 128), "vision": (32, 2, 2), "vocabulary": 512},
    "tenth": {"text": (896, 6, 14, 2, 4864), "vision": (320, 8, 4), "vocabulary": 4096},
    "half": {"text": (896, 24, 14, 2, 4864), "vision": (1280, 8, 16), "vocabulary": 4096, "embeddings": 151_936},
}
"""By name: hidden size, layers, heads, key/value heads and feed-forward size of the decoder; hidden size, layers and
heads of the vision tower. The 2B has (1536, 28, 12, 2, 8960) and (1280, 32, 16): ``quarter`` keeps the ratios of
widths, depths, feed-forward size and queries per key. ``half`` has a decoder of Qwen2-0.5B's sizes, half a billion
parameters, with as many token embeddings; ``tenth`` has a quarter of its layers."""


def paragraphs() -> list[str]:
    """Prose of a few to a few hundred words, in a fixed order."""
    parts = [
        " ".join(part.split()) for name in sorted(topics.topics) for part in re.split(r"\n\s*\n", topics.topics[name])
    ]
    parts = [part for part in parts if 20 <= len(part) <= 1200 and part.count(" ") >= 3]
    random.Random(0).shuffle(parts)
    return parts


def photographs() -> list[Image.Image]:
    package = importlib.util.find_spec("skimage")
    if package is None:
        sys.exit(
            "The photographs come with scikit-image, which is not installed: .venv/bin/python -m pip install -c "
            "constraints.txt -e '.[benchmarks]'"
        )
    folder = Path(package.origin).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


def pairs(count: int, largest_side: int = 336, most_words: int = 200, seed: int = 0) -> list[tuple[dict, dict]]:
    """Queries and targets: three of four queries show a part of a photograph, of 84 to ``largest_side`` pixels a side,
    with a short text; targets are prose of at most ``most_words`` words."""
    draw = random.Random(seed)
    texts, pictures = paragraphs(), photographs()
    result = []
    for i in range(count):
        text = texts[i % len(texts)]
        query = {"text": " ".join(text.split()[: draw.randint(3, 24)]), "images": []}
        if i % 4 != 3:
            picture = pictures[i % len(pictures)]
            width, height = draw.randint(84, largest_side), draw.randint(84, largest_side)
            left, top = draw.randint(0, max(0, picture.width - width)), draw.randint(0, max(0, picture.height - height))
            query["images"] = [
                picture.crop((left, top, min(left + width, picture.width), min(top + height, picture.height)))
            ]
        result.append((query, {"text": " ".join(texts[(i + 1) % len(texts)].split()[:most_words]), "images": []}))
    return result


def write_backbone(size: str, directory: Path) -> Path:
    """A Qwen2-VL of one of ``WIDTHS`` with random weights, and its processor."""
    hidden, layers, heads, key_heads, forward = WIDTHS[size]["text"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [END, *ROLES.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WIDTHS[size]["vocabulary"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(paragraphs(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, extra_special_tokens=ROLES
    )
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=None,
    ).save_pretrained(directory)
    half = hidden // heads // 2
    text = {
        "vocab_size": WIDTHS[size].get("embeddings", len(tokenizer)),
        "hidden_size": hidden,
        "intermediate_size": forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
        },
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    embed, depth, vision_heads = WIDTHS[size]["vision"]
    vision = {
        "depth": depth,
        "embed_dim": embed,
        "hidden_size": hidden,
        "num_heads": vision_heads,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    ids = {f"{role}_id": tokenizer.convert_tokens_to_ids(token) for role, token in ROLES.items()}
    torch.manual_seed(0)
    Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(directory)
    return directory


class Workload:
    """The product's embedder on a new backbone, ready to train or to embed.

    Args:
        size: a key of ``WIDTHS``.
        paths: K.
        train_vision: whether the vision tower is trained; the decoder is in full.
        prefix: settings of the recipe's ``model.prefix``.
        train: settings of its ``train``.
    """

    def __init__(self, size: str, paths: int, train_vision: bool, prefix: dict | None = None, **train):
        self.folder = tempfile.TemporaryDirectory()
        self.backbone = write_backbone(size, Path(self.folder.name) / "backbone")
        # The shipped files have the large buckets that large models on GPUs want; here they would hold a second copy of
        # all gradients.
        zero = {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 2_000_000, "allgather_bucket_size": 2_000_000}
        (Path(self.folder.name) / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
        vision = {"train_vision": train_vision, "train_projector": train_vision}
        tree = {
            "model": {"path": str(self.backbone), "paths": paths, "lora": None, "prefix": prefix or {}, **vision},
            "data": {"train": "unused"},
            "objective": {"diversity": "none"},
            "train": {
                "output_dir": "unused",
                "deepspeed": str(Path(self.folder.name) / "zero.json"),
                "max_steps": 1000,
                "per_device_train_batch_size": 1,
                "bf16": False,
                # Alone there is nobody to send gradients to, and summing them into the shards at once takes less
                # memory.
                "gradient_reduction": "chunk",
                **train,
            },
        }
        self.config: Config = parse_config(tree)

    def embedder(self) -> ParallelEmbedder:
        return build_embedder(self.config)

    def plain(self) -> Qwen2VLModel:
        """The backbone of plain transformers, with the same weights and the same parts trained."""
        model = Qwen2VLModel.from_pretrained(self.backbone, dtype=torch.float32).train()
        model.visual.requires_grad_(self.config.model.train_vision)
        return model

    def stepper(self, embedder: ParallelEmbedder, world: World | None = None) -> Stepper:
        """The product's training step on a DeepSpeed engine."""
        config, world = self.config, world or join_world()
        settings = load_deepspeed_config(config.train.deepspeed, config.train, world.size)
        module = TrainingModule(embedder, config.objective.temperature, config.objective.learn_temperature)
        engine = start_engine(module, config, settings)
        objective = Objective(config.objective, config.model.paths, embedder.config.hidden_size, config.train.seed, [])
        nothing, _ = embedder.processor([filler()], ["query"])
        return Stepper(engine, objective, world, config.train, nothing, config.train.gradient_reduction == "step")


def batch_of(samples: list[tuple[dict, dict]], embedder: ParallelEmbedder, chunk_pairs: int | None = None) -> Batch:
    """The samples as the loader would hand them to the step, in chunks of ``chunk_pairs`` (one chunk if None)."""
    count = len(samples)
    chunk_pairs = chunk_pairs or count
    chunks = []
    for start in range(0, count, chunk_pairs):
        part = samples[start : start + chunk_pairs]
        items = [query for query, _ in part] + [target for _, target in part]
        own = torch.arange(start, start + len(part))
        inputs, _ = embedder.processor(items, ["query"] * len(part) + ["target"] * len(part))
        chunks.append(Chunk(inputs=inputs, slots=torch.cat([own, count + own])))
    none = torch.empty(count, 0, dtype=torch.long)
    return Batch(chunks, count, 0, torch.arange(count), none, torch.ones(count, dtype=torch.bool), none.bool())


def shape_of(batch: Batch) -> dict:
    """How much work a batch is."""
    masks = [chunk.inputs["attention_mask"] for chunk in batch.chunks]
    tokens = sum(int(mask.sum()) for mask in masks)
    grids = [chunk.inputs["image_grid_thw"] for chunk in batch.chunks if "image_grid_thw" in chunk.inputs]
    return {
        "pairs": batch.pairs,
        "tokens": tokens,
        "padded_tokens": sum(mask.numel() for mask in masks),
        "image_patches": int(sum(grid.prod(-1).sum() for grid in grids)),
        "longest": max(int(mask.sum(1).max()) for mask in masks),
    }
