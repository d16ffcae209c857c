"""The check that every export passes: without pdfx it gives the trainer's own embeddings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from pdfx.errors import UserError

TOLERANCE = 1e-4
"""Largest difference of a unit embedding's entry between trainer and export, if both compute in float32."""
NARROW_TOLERANCE = 5e-3
"""The largest cosine distance, if bf16 or fp16 rounds every layer's output to 3 decimal digits or fewer."""


def verify_export(export: Path, probe: Path, narrow: bool = False) -> float:
    """Re-embed the trainer's probe with the export, in a process that cannot import pdfx, and return the largest
    difference.

    Args:
        narrow: whether trainer or export compute in less than float32; the difference is then the cosine distance,
            otherwise that of single entries.

    Raises:
        UserError: the export does not load there, or its embeddings differ from the trainer's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.safetensors"
        # A cache of its own, so that code of an earlier export is not taken for this one's.
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(scratch) / "modules"), "HF_HUB_OFFLINE": "1"}
        script = str(Path(__file__).with_name("export_check.py"))
        command = [sys.executable, "-P", script, str(export.resolve()), str(probe.resolve()), str(result)]
        process = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise UserError(
                f"The process that re-embeds with the export was ended by {name}, most often because memory ran out; "
                "free some, or --skip-check."
            )
        if process.returncode:
            raise UserError(
                f"The export does not load without pdfx; its process ended with: {process.stderr.strip()[-2000:]}"
            )
        ours, expected = load_file(result), load_file(probe / "embeddings.safetensors")
    differences = {name: embedding_difference(ours[name], expected[name], narrow) for name in expected}
    name, worst = max(differences.items(), key=lambda pair: pair[1])
    limit = NARROW_TOLERANCE if narrow else TOLERANCE
    # Written so that a NaN fails too.
    if not worst <= limit:
        raise UserError(
            f"The export's {name} embeddings differ from the trainer's by {worst:.2g}, more than {limit:g}: a weight "
            "is wrong or missing. Nothing was written."
        )
    return worst


def check_words(worst: float, probe: Path, narrow: bool) -> str:
    """What ``verify_export`` found, in a sentence."""
    count = len(json.loads((probe / "items.json").read_text(encoding="utf-8")))
    limit = NARROW_TOLERANCE if narrow else TOLERANCE
    measure = "cosine distance" if narrow else "difference of an entry"
    return (
        f"Checked: loaded without pdfx, the export embeds {count} inputs of the run as the trainer did; largest "
        f"{measure} {worst:.1e}, allowed {limit:g}."
    )


def embedding_difference(ours: torch.Tensor, expected: torch.Tensor, narrow: bool) -> float:
    """Largest cosine distance if ``narrow``, else largest difference of an entry; NaN if shapes differ."""
    if ours.shape != expected.shape:
        return float("nan")
    if not narrow:
        return (ours - expected).abs().max().item()
    return (1 - torch.nn.functional.cosine_similarity(ours, expected, dim=-1)).max().item()
