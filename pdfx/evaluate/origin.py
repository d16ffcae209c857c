"""Whether an export was made from a run, told by the record that the converter left in it."""

from __future__ import annotations

from pathlib import Path

from pdfx.config import Config
from pdfx.errors import UserError
from pdfx.reading import read_json
from pdfx.urls import scrubbed

RECORD = "pdfx_export.json"
_CONVERTED = {"model.cache_vision", "model.gradient_checkpointing"}
"""What the converter sets itself."""
_MOVABLE = {"model.path", "model.revision", "model.attention"}
"""What of a model a run may change when it is resumed."""


def origin_of(model: Path, run: Path, config: Config, last_step: int) -> tuple[str, list[str]]:
    """Where an export comes from, in words, and what there is to say about it.

    Raises:
        UserError: it was made from another run, or its record is damaged.
    """
    if not (model / RECORD).is_file():
        return str(model), [f"{model} has no {RECORD}, so it cannot be told whether it was made from {run}."]
    try:
        record = read_json(model / RECORD)
        step, recorded = int(record["step"]), _flat(record["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{model / RECORD} is damaged; convert the run again.") from None
    own = _flat(config.model_dump(mode="json"))
    changed = [name for name in recorded.keys() & own.keys() if recorded[name] != own[name] and name not in _CONVERTED]
    moved = "train.output_dir" in changed and len(changed) > 1
    foreign = sorted(name for name in changed if moved or (name.startswith(("model.", "inputs.")) and name not in _MOVABLE))
    cure = f"Give the model that 'pdfx convert {run}' writes."
    if foreign:
        raise UserError(f"{model} was made from another run than {run}: {_difference(foreign, recorded, own)}. {cure}")
    if step > last_step:
        raise UserError(f"{model} was made from step {step}, and {run} has only reached step {last_step}, so it is another run. {cure}")
    notes = [f"The run's settings have changed since {model} was made: {_difference(sorted(changed), recorded, own)}."] if changed else []
    return f"{model}, step {step}", notes


def _difference(names: list[str], recorded: dict[str, object], own: dict[str, object]) -> str:
    words = [f"{name} is {recorded[name]!r} there and {own[name]!r} in the run" for name in names[:3]]
    return "; ".join(words) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Values by dotted keys, without the secrets of URLs."""
    flat = {}
    for name, value in scrubbed(tree).items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
