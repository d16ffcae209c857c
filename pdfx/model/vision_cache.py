"""Keep a frozen vision tower's outputs: they are a function of the pixels alone, so a hash of the pixels finds them again, exactly."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


def cache_vision_tower(embedder: nn.Module, gigabytes: float) -> "VisionCache":
    """Let the embedder's frozen vision tower answer from a cache of at most ``gigabytes`` (10^9 bytes) of host memory, oldest use dropped first.

    The tower still runs on every rank as soon as one rank needs it (``embedder.vision_agreement``), so that sharded parameters are gathered by all.

    Raises:
        ValueError: the tower has trainable parameters, whose outputs would go stale.
    """
    tower = embedder.family.vision_of(embedder.backbone)
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError("The vision tower is trained, so its outputs cannot be cached; freeze it or set model.cache_vision to false.")
    layers = getattr(embedder.backbone.config, "vision_feature_layer", None)
    cache = VisionCache(tower.forward, layers, int(gigabytes * 1e9), lambda need: embedder.vision_agreement(need))
    tower.forward = cache.by_grid if embedder.family.model_type == "qwen2_vl" else cache.by_crop
    return cache


class VisionCache:
    """Outputs by pixel hash, least recently used last out.

    Attributes:
        computed: images or crops that the tower really ran on.
        found: images or crops that came from the cache.
    """

    def __init__(self, forward: Callable, layers, limit: int, agreement: Callable[[bool], bool]):
        self.forward = forward
        self.layers = [layers] if isinstance(layers, int) else layers
        self.limit = limit
        self.agreement = agreement
        self.entries: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()
        self.bytes = self.computed = self.found = 0

    def by_crop(self, pixel_values: torch.Tensor, **kwargs):
        """For towers that map ``[crops, channels, height, width]`` to hidden states per crop, of which the backbone picks ``vision_feature_layer``."""

        def run(missing: list[int]) -> list[tuple[torch.Tensor, ...]]:
            states = self.forward(pixel_values[missing], **{**kwargs, "output_hidden_states": True}).hidden_states
            return list(zip(*(states[layer] for layer in self.layers), strict=True))

        entries = self.look_up([pixels_hash(crop) for crop in pixel_values], run, pixel_values.device)
        states = {layer: torch.stack([entry[i] for entry in entries]).to(pixel_values.device) for i, layer in enumerate(self.layers)}
        return BaseModelOutputWithPooling(hidden_states=states)

    def by_grid(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs):
        """For Qwen2-VL's tower, which maps ``[patches of all images, D]`` and grids ``[images, 3]`` to merged tokens."""
        images = hidden_states.split(grid_thw.prod(-1).tolist())

        def run(missing: list[int]) -> list[tuple[torch.Tensor, ...]]:
            merged = self.forward(torch.cat([images[i] for i in missing]), grid_thw=grid_thw[missing]).pooler_output
            patches = grid_thw[missing].prod(-1)
            return [(part,) for part in merged.split((patches * len(merged) // patches.sum()).tolist())]

        hashes = [pixels_hash(image, grid) for image, grid in zip(images, grid_thw, strict=True)]
        entries = self.look_up(hashes, run, hidden_states.device)
        return BaseModelOutputWithPooling(pooler_output=torch.cat([entry[0] for entry in entries]).to(hidden_states.device))

    def look_up(self, hashes: list[bytes], run: Callable, device: torch.device) -> list[tuple[torch.Tensor, ...]]:
        """The outputs for ``hashes``; ``run`` computes those of the places that are missing, each distinct hash once.

        On a CPU they are computed one by one: kernels may round by the size of their batch, and what the batch lacks depends on where a run was resumed.
        """
        first = {h: i for i, h in reversed(list(enumerate(hashes)))}
        missing = [i for h, i in first.items() if h not in self.entries]
        lacking = {hashes[i] for i in missing}
        fresh: dict[bytes, tuple[torch.Tensor, ...]] = {}
        while self.agreement(bool(missing)):
            count = 1 if device.type == "cpu" else len(missing)
            # A rank that lacks nothing joins with its first image, because the others gather the tower's parameters now.
            places, missing = missing[:count] or [0], missing[count:]
            with torch.no_grad():
                outputs = run(places)
            fresh |= {hashes[i]: tuple(part.cpu().clone() for part in output) for i, output in zip(places, outputs, strict=True) if hashes[i] in lacking}
        self.computed += len(fresh)
        self.found += len(hashes) - len(fresh)
        result = []
        for h in hashes:
            if h in self.entries:
                self.entries.move_to_end(h)
            result.append(fresh[h] if h in fresh else self.entries[h])
        for h, entry in fresh.items():
            self.store(h, entry)
        return result

    def store(self, key: bytes, entry: tuple[torch.Tensor, ...]) -> None:
        self.entries[key] = entry
        self.bytes += sum(part.nbytes for part in entry)
        while self.bytes > self.limit and len(self.entries) > 1:
            _, dropped = self.entries.popitem(last=False)
            self.bytes -= sum(part.nbytes for part in dropped)


def pixels_hash(*tensors: torch.Tensor) -> bytes:
    """128 bits over the tensors' shapes, types and bytes."""
    digest = blake2b(digest_size=16)
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.digest()
