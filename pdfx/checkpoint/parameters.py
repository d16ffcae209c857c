"""The trained parameters of a checkpoint and their optimiser states, in any slices, whatever number of ranks wrote them
and however they were sharded.

Each rank writes one safetensors file with its parts: flat tensors named ``KIND/PARAMETER``, and in the header's
metadata where in the flattened parameter each part begins and what shape the parameter has.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pdfx.errors import UserError
from pdfx.host.reading import parse_json
from pdfx.host.tensor_files import TensorFile, whole_size

MASTER = "master"
"""The kind of the float32 parameters themselves; the other kinds are named as the optimiser names its states."""
PARTS = "parts"


def part_file_name(rank: int, ranks: int) -> str:
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def parts_metadata(starts: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The metadata of one rank's file, which ``SavedParameters`` reads."""
    return {
        PARTS: json.dumps({name: [start, list(shapes[name])] for name, start in starts.items()}, separators=(",", ":"))
    }


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one flattened parameter in one file."""

    start: int
    end: int
    file: TensorFile


class SavedParameters:
    """All ranks' files of a checkpoint as one set of parameters.

    Args:
        files: those that the manifest lists.

    Attributes:
        shapes: by the parameter's name in the training module.

    Raises:
        UserError: a file is damaged, or some element is in none of them or in two.
    """

    def __init__(self, files: list[Path]):
        self.directory = files[0].parent if files else Path(PARTS)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[Piece]] = {}
        for path in files:
            self._add(TensorFile(path))
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            self._check(name, pieces)

    def _add(self, file: TensorFile) -> None:
        try:
            parts = parse_json(file.metadata[PARTS].encode())
            for name, (start, shape) in parts.items():
                self.shapes[name] = tuple(map(whole_size, shape))
                count = file.entries[f"{MASTER}/{name}"].elements
                self._pieces.setdefault(name, []).append(Piece(whole_size(start), start + count, file))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{file.path} does not say which parts of which parameters it holds; it was not written by this "
                "version of pdfx."
            ) from None

    def _check(self, name: str, pieces: list[Piece]) -> None:
        reached = 0
        for before, piece in zip([None, *pieces], pieces, strict=False):
            if piece.start > reached:
                break
            if piece.start < reached or piece.end < piece.start:
                raise UserError(
                    f"{before.file.path if before else self.directory} and {piece.file.path} both hold element "
                    f"{piece.start} of {name}."
                )
            reached = piece.end
        if reached != math.prod(self.shapes[name]):
            raise UserError(f"No file in {self.directory} holds element {reached} of {name}; a rank's file is missing.")

    def read(self, kind: str, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """``count`` elements from ``start`` on of a flattened parameter or of one of its states, all by default."""
        end = math.prod(self.shapes[name]) if count is None else start + count
        values, reached = [], start
        for piece in self._pieces[name]:
            if reached < end and piece.start <= reached < piece.end:
                upto = min(end, piece.end)
                values.append(piece.file.read(f"{kind}/{name}", reached - piece.start, upto - reached))
                reached = upto
        if reached < end:
            raise UserError(f"{self.directory} does not hold elements {reached} to {end - 1} of {name}.")
        return values[0] if len(values) == 1 else torch.cat(values) if values else torch.empty(0)
