"""The conversion as a whole: which checkpoint, what is written where, and when it counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from pdfx.checkpoint.directory import PROBE, Checkpoint
from pdfx.checkpoint.identity import settings_changes
from pdfx.checkpoint.retention import chosen_checkpoint
from pdfx.config import Config, load_config
from pdfx.config.run_files import CONFIG
from pdfx.convert.adapter import write_adapter
from pdfx.convert.check import check_words, verify_export
from pdfx.convert.documents import write_documents, write_record
from pdfx.convert.weights import WeightSource, write_shards
from pdfx.embedder.build import build_on_meta
from pdfx.embedder.lora import remove_adapters
from pdfx.errors import UserError
from pdfx.host.files import draft_beside, parse_size, sync
from pdfx.host.reading import read_json

MAX_SHARD_SIZE = "5GB"


def convert(
    run: Path | str,
    out: Path | str,
    checkpoint: str = "newest",
    dtype: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    adapter: bool = False,
    check: bool = True,
    say: Callable[[str], None] = lambda sentence: None,
    trust_remote_code: bool = False,
) -> Path:
    """Write a run's embedder as a Hugging Face model directory: LoRA merged, remote code and processor beside the
    weights. No GPU is needed.

    Weights go from the checkpoint and the backbone's files to the export in pieces. The directory appears only after it
    gave the trainer's own embeddings again, loaded by a process that cannot import pdfx; only that process holds the
    whole model.

    Args:
        run: ``train.output_dir`` of the run.
        out: a directory that does not exist yet or is empty.
        checkpoint: ``newest`` (whole one), ``best`` (by ``train.metric_for_best_model``) or a step.
        dtype: ``float32``, ``bfloat16`` or ``float16``; what the run trained in by default.
        max_shard_size: of one file of weights, as in ``500MB``.
        adapter: leave the backbone's weights where they are: write LoRA as a PEFT adapter, and what else was trained.
        check: whether to re-embed.
        say: is given a sentence about the check.
        trust_remote_code: run the Python files that the run names in ``model.modules``, and code that its backbone
            brings.

    Returns:
        ``out``.

    Raises:
        UserError: there is no such whole checkpoint, weights are missing, ``out`` is in use, or the embeddings differ.

    >>> import pdfx
    >>> pdfx.convert("run", "converted", say=print)
    Checked: loaded without pdfx, the export embeds 6 inputs of the run as the trainer did; ...
    PosixPath('converted')
    """
    disable_progress_bar()
    run, out, largest = Path(run), Path(out), parse_size(max_shard_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another --out or remove it.")
    config = read_run_config(run, trust_remote_code)
    source = chosen_checkpoint(run, checkpoint, config.train)
    settings_changes(source, config)
    trained_as = torch.bfloat16 if config.train.bf16 else torch.float32
    target = getattr(torch, dtype) if dtype else trained_as
    weights = WeightSource(build_on_meta(config).eval(), config.model, source, trained_as)
    with draft_beside(out) as draft:
        _write(draft, weights, config, source, target, None if adapter else largest)
        if check:
            say(_checked(draft, source, narrow={target, trained_as} != {torch.float32}))
        else:
            say("Not checked: whether the export embeds as the trainer did was not looked at, as was asked for.")
        source.require_unchanged()
        _put_in_place(draft, out)
    return out


def _checked(draft: Path, source: Checkpoint, narrow: bool) -> str:
    """Compare the export's embeddings with the trainer's; what was found, in words. Raises UserError if they differ."""
    check_probe(source)
    probe = source.path / PROBE
    return check_words(verify_export(draft, probe, narrow), probe, narrow)


def _write(
    draft: Path, weights: WeightSource, config: Config, source: Checkpoint, target: torch.dtype, largest: int | None
) -> None:
    """Write a whole export, or an adapter if ``largest``, the bytes of one file of weights, is None."""
    if largest is None:
        of_weights = write_adapter(weights, draft, config, source, target)
    else:
        write_documents(remove_adapters(copy.deepcopy(weights.embedder)), draft, config, source, target)
        of_weights = write_shards(draft, weights.merged_weights(target), largest)
    weights.check_frozen(source, config.model)
    write_record(draft, config, source, of_weights, Path(config.model.path) if largest is None else None)


def _put_in_place(draft: Path, out: Path) -> None:
    """Give a whole export its name."""
    # A rename may reach the disk before what it names.
    for path in (*draft.rglob("*"), draft):
        sync(path)
    if out.exists():
        out.rmdir()
    draft.rename(out)
    sync(out.parent)


def check_probe(source: Checkpoint) -> None:
    """Raises UserError if the probe is not made of files of the checkpoint."""
    try:
        names = [name for entry in read_json(source.file(f"{PROBE}/items.json")) for name in entry["images"]]
        for name in [*names, "embeddings.safetensors"]:
            source.file(f"{PROBE}/{name}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The probe of {source.path} is damaged: {error}.") from None


def read_run_config(run: Path, trust_remote_code: bool = False) -> Config:
    """The resolved configuration that a run saved."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run directory: it has no config.yaml; give the train.output_dir of a run.")
    config = load_config(run / CONFIG, ["model.trust_remote_code=true"] * trust_remote_code)
    # Neither changes an embedding, and both only serve training.
    config.model.cache_vision = False
    config.model.gradient_checkpointing = False
    return config
