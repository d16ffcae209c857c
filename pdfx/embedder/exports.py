"""Loading an exported model directory for use, with mistakes reported in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from pdfx.errors import UserError, in_short, shortened
from pdfx.host.files import FileRecord, read_record, stamp
from pdfx.host.reading import read_json
from pdfx.host.tensor_files import require_sound_files

if TYPE_CHECKING:
    from pdfx.model import InputProcessor, ParallelEmbedder

MODEL_TYPE = "pdfx_parallel_embedder"
RECORD = "pdfx_export.json"
"""The file in which the converter says what an export was made from, and what its files are."""
_CURE = f"Convert again, or remove {RECORD} if the change is wanted."


@contextmanager
def opened_export(
    directory: Path, device: torch.device | str = "cpu", trust_remote_code: bool = False, verify: bool = True
) -> Iterator[ParallelEmbedder]:
    """The model of an export while the block runs, as ``load_export`` loads it.

    Args:
        verify: whether to compare its files with their checksums, which one rank of several should do.

    Raises:
        UserError: it cannot be loaded; or a file changed while it was loaded, or was written over during the block: a
            CPU's weights are mapped from files.
    """
    check_export(directory)
    recorded = _recorded_files(directory)
    before = _stamps(directory, recorded)
    if verify:
        _verify(directory, recorded)
    model = load_export(directory, device, trust_remote_code)
    _require_same(directory, before, _stamps(directory, recorded), "while the model was loaded")
    yield model
    now = _stamps(directory, recorded)
    # A file that has another one in its place, or was removed, is still whole for a process that has opened it.
    kept = {name: there for name, there in before.items() if name in now and there[0] == now[name][0]}
    _require_same(directory, kept, now, "while the model was in use")


def files_of(directory: Path) -> list[str]:
    """Names of an export's files that may decide an embedding: not its record, documents, hidden or compiled files."""
    names = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file())
    passed_over = {RECORD, "__pycache__"}
    return [
        name.as_posix()
        for name in names
        if name.suffix != ".md" and not any(part[0] == "." or part in passed_over for part in name.parts)
    ]


def _recorded_files(directory: Path) -> dict[str, FileRecord]:
    """What the conversion wrote, and an adapter's backbone by its whole path; nothing for an export saved by hand."""
    try:
        return {name: FileRecord(**record) for name, record in read_json(directory / RECORD).get("files", {}).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{directory / RECORD} is damaged. {_CURE}") from None


def _verify(directory: Path, recorded: dict[str, FileRecord]) -> None:
    """Raises UserError if a file is missing or another one; one that was added is named in a warning."""
    if missing := [name for name in recorded if not (directory / name).is_file()]:
        raise UserError(f"{directory / missing[0]} is missing. {_CURE}")
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: read_record(directory / name), recorded)
        changed = [name for (name, record), now in zip(recorded.items(), found, strict=True) if record != now]
    if changed:
        raise UserError(
            f"{directory / changed[0]} is not the file of the conversion: its SHA-256 is not the one in "
            f"{directory / RECORD}. {_CURE}"
        )
    if recorded and (added := sorted(set(files_of(directory)) - recorded.keys())):
        warnings.warn(
            f"{directory} holds {shortened(', '.join(added), 200)}, which the conversion did not write and "
            "transformers may read.",
            stacklevel=2,
        )


def _stamps(directory: Path, recorded: dict[str, FileRecord]) -> dict[str, tuple]:
    return {
        name: stamp((directory / name).stat())
        for name in {*files_of(directory), *recorded}
        if (directory / name).is_file()
    }


def _require_same(directory: Path, before: dict[str, tuple], now: dict[str, tuple], when: str) -> None:
    if changed := [name for name, there in before.items() if now.get(name) != there]:
        raise UserError(f"{directory / min(changed)} changed {when}; leave it alone meanwhile, and start again.")


def load_export(
    directory: Path, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> ParallelEmbedder:
    """The model of an export in evaluation mode, its ``processor`` set, on ``device``.

    Args:
        trust_remote_code: run the backbone's own code that travels in some exports.

    Raises:
        UserError: the directory is not an export of pdfx, or its files are missing or damaged.
    """
    # Kept until here so that a wrong directory is refused before transformers is imported.
    check_export(directory)
    from transformers.utils import logging

    from pdfx.model import ParallelEmbedder

    logging.disable_progress_bar()
    try:
        model = ParallelEmbedder.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"The model in {directory} cannot be loaded: {in_short(error)}") from error
    return model.eval().to(device)


def check_export(directory: Path) -> None:
    """Raises UserError if ``directory`` is not what ``pdfx convert`` writes."""
    cure = "Give a directory that 'pdfx convert' wrote."
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}. {cure}")
    require_sound_files(directory)
    try:
        config = read_json(directory / "config.json")
    except FileNotFoundError:
        raise UserError(f"{directory} is not an exported model: it holds no config.json. {cure}") from None
    except ValueError:
        raise UserError(f"{directory / 'config.json'} is not valid JSON. {cure}") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != MODEL_TYPE:
        raise UserError(
            f"{directory} is not an export of pdfx: its config.json says the model type {model_type!r}, not "
            f"{MODEL_TYPE!r}. {cure}"
        )


def load_processor(directory: Path) -> InputProcessor:
    """The processor of an export, or of a backbone's directory with the default settings. No weights are read, and no
    code that lies there is run.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoProcessor

    from pdfx.model import InputProcessor
    from pdfx.model.families import family_of

    try:
        config = read_json(directory / "config.json")
        backbone = config.get("backbone", config)
        family = family_of(SimpleNamespace(model_type=backbone.get("model_type")))
        return InputProcessor(
            AutoProcessor.from_pretrained(directory, trust_remote_code=False), family, config.get("inputs") or {}
        )
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"The processor in {directory} cannot be loaded: {' '.join(str(error).split())}") from error
