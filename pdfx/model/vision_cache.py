"""Keep a frozen vision tower's outputs, which a hash of the pixels finds again, exactly."""

import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing, nullcontext
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .modeling import ParallelEmbedder
from .prefixes import Gathered

Output = tuple[torch.Tensor, ...]


SECONDS = 60.0
"""How long a process waits for another one that writes the same file."""


def cache_vision_tower(
    embedder: ParallelEmbedder, gigabytes: float, gathered: Gathered = nullcontext, path: str | Path | None = None
) -> "CachedTower":
    """Put a cache of at most ``gigabytes`` (10^9 bytes) of host memory in place of the embedder's frozen vision tower,
    oldest use dropped first.

    The tower itself leaves the module tree: every rank keeps it whole and runs it on its own, so that what one rank
    lacks costs the others nothing. It is in no state dictionary any more. Meant for training.

    Args:
        gathered: makes parameters whole that were loaded into shards.
        path: a file that keeps the outputs for later runs and other processes of this machine; made if missing.

    Raises:
        ValueError: the tower has trainable parameters, whose outputs would go stale.
    """
    tower = embedder.family.vision_of(embedder.backbone)
    if any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError(
            "The vision tower is trained, so its outputs cannot be cached; freeze it or set model.cache_vision "
            "to false."
        )
    unshard(tower, gathered)
    kind = CachedGridTower if embedder.family.model_type == "qwen2_vl" else CachedCropTower
    file = None if path is None else OutputFile(Path(path), tower)
    cached = kind(tower, embedder.backbone.config, int(gigabytes * 1e9), file)
    embedder.backbone.set_submodule(embedder.family.vision, cached)
    return cached


def unshard(module: nn.Module, gathered: Gathered) -> None:
    """Give a frozen module whole parameters of its own instead of shards."""
    with gathered(list(module.parameters())):
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


class OutputFile:
    """Outputs of one tower in an SQLite file, which several processes of a machine may use at once.

    A file may serve several towers: an output is found by the pixels' hash and by one over the tower's weights.

    Raises:
        ValueError: the file is not one of these, or cannot be written.
    """

    def __init__(self, path: Path, tower: nn.Module):
        self.path = path
        self.tower = pixels_hash(*tower.state_dict().values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                columns = "key BLOB PRIMARY KEY, tensors BLOB"
                database.execute(f"CREATE TABLE IF NOT EXISTS outputs ({columns}) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"The file of the tower's outputs {path} cannot be used: {error}; give another one."
            ) from None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=SECONDS)

    def get(self, hashes: list[bytes]) -> dict[bytes, Output]:
        """Those outputs that the file holds."""
        found = {}
        with closing(self._open()) as database:
            for key in hashes:
                row = database.execute("SELECT tensors FROM outputs WHERE key = ?", (self.tower + key,)).fetchone()
                if row is not None:
                    tensors = load(row[0])
                    found[key] = tuple(tensors[name] for name in sorted(tensors))
        return found

    def put(self, outputs: dict[bytes, Output]) -> None:
        """Add outputs; those that are there stay."""
        rows = [
            (self.tower + key, save({f"{i:03}": tensor.contiguous() for i, tensor in enumerate(output)}))
            for key, output in outputs.items()
        ]
        with closing(self._open()) as database, database:
            database.executemany("INSERT OR IGNORE INTO outputs VALUES (?, ?)", rows)


class CachedTower(nn.Module):
    """A frozen tower's outputs by pixel hash, least recently used last out.

    Attributes:
        tower: the real one, held beside the module tree.
        computed: images or crops that the tower really ran on.
        found: images or crops that came from the cache.
    """

    def __init__(self, tower: nn.Module, backbone_config, limit: int, file: OutputFile | None = None):
        super().__init__()
        self.file = file
        # Not through nn.Module's registration, which would make it a child.
        self.__dict__["tower"] = tower.eval()
        layers = getattr(backbone_config, "vision_feature_layer", None)
        self.layers: list[int] = [layers] if isinstance(layers, int) else list(layers or ())
        self.limit = limit
        self.entries: OrderedDict[bytes, Output] = OrderedDict()
        self.bytes = self.computed = self.found = 0

    def __getattr__(self, name: str):
        """What the backbone asks of its tower beside calling it, such as its type."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["tower"], name)

    def _apply(self, function, recurse=True):
        self.tower._apply(function, recurse)
        return super()._apply(function, recurse)

    @torch.no_grad()
    def look_up(
        self, hashes: list[bytes], run: Callable[[list[int]], list[Output]], device: torch.device
    ) -> list[Output]:
        """The outputs for ``hashes``, on the host; ``run`` computes those of the places that are missing, each distinct
        hash once.

        On a CPU they are computed one by one: kernels may round by the size of their batch, and what a batch lacks
        depends on where a run was resumed.
        """
        first = {key: place for place, key in reversed(list(enumerate(hashes)))}
        unknown = [key for key in first if key not in self.entries]
        kept = self.file.get(unknown) if self.file is not None and unknown else {}
        missing = sorted(first[key] for key in unknown if key not in kept)
        parts = [[place] for place in missing] if device.type == "cpu" else [missing] if missing else []
        fresh = {hashes[place]: output for part in parts for place, output in zip(part, run(part), strict=True)}
        fresh = {key: tuple(tensor.cpu().clone() for tensor in output) for key, output in fresh.items()}
        self.computed += len(fresh)
        self.found += len(hashes) - len(fresh)
        if self.file is not None and fresh:
            self.file.put(fresh)
        fresh |= kept
        result = [fresh[key] if key in fresh else self.entries[key] for key in hashes]
        self.store(hashes, fresh)
        return result

    def store(self, hashes: list[bytes], fresh: dict[bytes, Output]) -> None:
        for key in hashes:
            if key in self.entries:
                self.entries.move_to_end(key)
        for key, output in fresh.items():
            self.entries[key] = output
            self.bytes += size(output)
        while self.bytes > self.limit and len(self.entries) > 1:
            self.bytes -= size(self.entries.popitem(last=False)[1])


class CachedCropTower(CachedTower):
    """For towers that map ``[crops, channels, height, width]`` to hidden states, of which some layers are used."""

    def forward(self, pixel_values: torch.Tensor, **kwargs):
        def run(missing: list[int]) -> list[Output]:
            states = self.tower(pixel_values[missing], **{**kwargs, "output_hidden_states": True}).hidden_states
            return list(zip(*(states[layer] for layer in self.layers), strict=True))

        outputs = self.look_up([pixels_hash(crop) for crop in pixel_values], run, pixel_values.device)
        states = {
            layer: torch.stack([output[i] for output in outputs]).to(pixel_values.device)
            for i, layer in enumerate(self.layers)
        }
        # Backbones index it by layer, as they would the tuple of all layers.
        return BaseModelOutputWithPooling(hidden_states=states)  # type: ignore[arg-type]


class CachedGridTower(CachedTower):
    """For Qwen2-VL's tower, which maps ``[patches of all images, D]`` and grids ``[images, 3]`` to merged tokens."""

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs):
        images = hidden_states.split(grid_thw.prod(-1).tolist())

        def run(missing: list[int]) -> list[Output]:
            merged = self.tower(
                torch.cat([images[i] for i in missing]), grid_thw=grid_thw[missing], **kwargs
            ).pooler_output
            patches = grid_thw[missing].prod(-1)
            return [(part,) for part in merged.split((patches * len(merged) // patches.sum()).tolist())]

        hashes = [pixels_hash(image, grid) for image, grid in zip(images, grid_thw, strict=True)]
        outputs = self.look_up(hashes, run, hidden_states.device)
        return BaseModelOutputWithPooling(
            pooler_output=torch.cat([output[0] for output in outputs]).to(hidden_states.device)
        )


def size(output: Output) -> int:
    """Bytes of one entry."""
    return sum(tensor.nbytes for tensor in output)


def pixels_hash(*tensors: torch.Tensor) -> bytes:
    """128 bits over the tensors' shapes, types and bytes."""
    digest = blake2b(digest_size=16)
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.digest()
