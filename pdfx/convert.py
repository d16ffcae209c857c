"""From a run's sharded checkpoint to a Hugging Face directory that proves itself."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from jinja2 import Environment, PackageLoader
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

import pdfx
from pdfx.adapters import merge_lora
from pdfx.build import build_embedder
from pdfx.config import Config, load_config
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder
from pdfx.train.checkpoint import DEEPSPEED_CLASSES, DIRECTORY, ZERO_TAG, Checkpoint, directory_name, newest_whole, open_checkpoint

PROBE_TOLERANCE = {torch.float32: 1e-4}
"""Largest difference of a unit embedding's entry between trainer and export."""
NARROW_TOLERANCE = 5e-3
"""The same as cosine distance where bf16 or fp16 rounds every layer's output to 3 decimal digits or fewer."""


def convert(run: Path | str, out: Path | str, checkpoint: int | None = None, dtype: str | None = None) -> Path:
    """Write a run's embedder as a Hugging Face model directory: LoRA merged, remote code and processor beside the weights. No GPU is needed.

    The directory appears only after it gave the trainer's own embeddings again, loaded by a process that cannot import pdfx.

    Args:
        run: ``train.output_dir`` of the run.
        out: a directory that does not exist yet or is empty.
        checkpoint: step to convert; the newest whole checkpoint by default.
        dtype: ``float32``, ``bfloat16`` or ``float16``; what the run trained in by default.

    Raises:
        UserError: there is no whole checkpoint, weights are missing, ``out`` is in use, or the embeddings differ.
    """
    disable_progress_bar()
    run, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another --out or remove it.")
    config = read_run_config(run)
    source = chosen_checkpoint(run, checkpoint)
    target = getattr(torch, dtype) if dtype else (torch.bfloat16 if config.train.bf16 else torch.float32)
    embedder = trained_embedder(config, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the final place, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        draft = Path(scratch) / out.name
        write_export(merge_lora(embedder).to(target), draft, config, source)
        verify_export(draft, source.path / "probe", target)
        if out.exists():
            out.rmdir()
        draft.rename(out)
    return out


def read_run_config(run: Path) -> Config:
    """The resolved configuration that a run saved."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run directory: it has no config.yaml; give the train.output_dir of a run.")
    config = load_config(run / "config.yaml")
    # Neither changes an embedding, and both only serve training.
    config.model.cache_vision = False
    config.model.gradient_checkpointing = False
    return config


def chosen_checkpoint(run: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest whole one. Raises UserError where there is none."""
    if step is not None:
        return open_checkpoint(run / DIRECTORY / directory_name(step))
    checkpoint, passed_over = newest_whole(run)
    if checkpoint is None:
        raise UserError(" ".join([f"{run} has no whole checkpoint; train until train.save_steps first.", *passed_over]))
    return checkpoint


def consolidated_weights(source: Checkpoint) -> dict[str, torch.Tensor]:
    """The trained parameters in float32 by their name in the embedder, put together from all ranks' shards by DeepSpeed's own code.

    Raises:
        UserError: a shard is missing or damaged.
    """
    prefix = "embedder."
    # DeepSpeed asks for unrestricted unpickling; this switch overrules it, so that a file cannot run code.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(DEEPSPEED_CLASSES), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            weights = get_fp32_state_dict_from_zero_checkpoint(str(source.path), tag=ZERO_TAG, exclude_frozen_parameters=True)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"The shards in {source.path / ZERO_TAG} cannot be put together: {' '.join(str(error).split())[:500]}") from error
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def trained_embedder(config: Config, source: Checkpoint) -> ParallelEmbedder:
    """The recipe's embedder in float32 on the CPU with the checkpoint's weights. Raises UserError where a trained weight is missing or does not fit."""
    embedder = build_embedder(config).eval()
    weights = consolidated_weights(source)
    own = {**dict(embedder.named_parameters()), **dict(embedder.named_buffers())}
    missing = [name for name, parameter in own.items() if parameter.requires_grad and name not in weights]
    unknown = [name for name in weights if name not in own]
    misfit = [name for name, weight in weights.items() if name in own and weight.shape != own[name].shape]
    for problem, names in {"lacks": missing, "has unknown": unknown, "has wrongly shaped": misfit}.items():
        if names:
            raise UserError(f"{source.path} {problem} {len(names)} weights, {names[0]} among them; it does not belong to the configuration of this run.")
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
    return embedder


def write_export(embedder: ParallelEmbedder, directory: Path, config: Config, source: Checkpoint) -> None:
    """Weights in sharded safetensors, configuration, remote code, processor, model card."""
    embedder.requires_grad_(False)
    embedder.config.dtype = embedder.dtype
    embedder.save_pretrained(directory)
    embedder.processor.save_pretrained(directory)
    write_own_modules(directory, [Path(path) for path in config.model.modules])
    record = {"pdfx": pdfx.__version__, "step": source.step, "config": config.model_dump(mode="json")}
    (directory / "pdfx_export.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    (directory / "README.md").write_text(model_card(embedder, directory.name, config, source), encoding="utf-8")


def write_own_modules(directory: Path, files: list[Path]) -> None:
    """Let the backbone's own modules travel: copied beside ours, and imported by ours before the backbone's configuration is read."""
    if not files:
        return
    imports = []
    for path in files:
        if (directory / path.name).exists():
            raise UserError(f"model.modules names {path}, but the export has a file of that name of its own; rename it.")
        shutil.copyfile(path, directory / path.name)
        imports.append(f"from .{path.stem} import __name__ as _{path.stem}  # noqa: F401")
    names = ", ".join(repr(path.name) for path in files)
    lines = ['"""Importing the backbone\'s own files registers their classes with transformers."""', "", *imports, "", f"MODULE_FILES = ({names},)", ""]
    (directory / "registered_modules.py").write_text("\n".join(lines), encoding="utf-8")


def model_card(embedder: ParallelEmbedder, name: str, config: Config, source: Checkpoint) -> str:
    """The export's README."""
    template = Environment(loader=PackageLoader("pdfx", "."), autoescape=False, trim_blocks=True, lstrip_blocks=True).get_template("model_card.md.j2")
    dims = config.model.matryoshka_dims
    return template.render(
        name=name,
        base_model=config.model.path,
        paths=embedder.config.paths,
        dimension=embedder.config.hidden_size,
        fused=embedder.config.fused_size,
        version=pdfx.__version__,
        step=source.step,
        dtype=str(embedder.dtype).removeprefix("torch."),
        matryoshka=", ".join(map(str, dims)),
        matryoshka_first=dims[0] if dims else None,
    )


def verify_export(export: Path, probe: Path, dtype: torch.dtype = torch.float32) -> float:
    """Re-embed the trainer's probe with the export, in a process that cannot import pdfx, and return the largest difference.

    For float32 the difference is that of single entries; for narrower types it is the cosine distance.

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
        if process.returncode:
            raise UserError(f"The export does not load without pdfx; its process ended with: {process.stderr.strip()[-2000:]}")
        ours, expected = load_file(result), load_file(probe / "embeddings.safetensors")
    differences = {name: embedding_difference(ours[name], expected[name], dtype) for name in expected}
    name, worst = max(differences.items(), key=lambda pair: pair[1])
    limit = PROBE_TOLERANCE.get(dtype, NARROW_TOLERANCE)
    # Written so that a NaN fails too.
    if not worst <= limit:
        raise UserError(
            f"The export's {name} embeddings differ from the trainer's by {worst:.2g}, more than {limit:g}: a weight is wrong or missing. Nothing was written."
        )
    return worst


def embedding_difference(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    """Largest entry-wise difference in float32, largest cosine distance otherwise; NaN where shapes differ."""
    if ours.shape != expected.shape:
        return float("nan")
    if dtype in PROBE_TOLERANCE:
        return (ours - expected).abs().max().item()
    return (1 - torch.nn.functional.cosine_similarity(ours, expected, dim=-1)).max().item()
