"""Whether an export was made from a run, according to the record that the converter left in it."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.settings import DECISIVE, FREE, changes
from pdfx.config import Config
from pdfx.embedder.exports import RECORD
from pdfx.errors import UserError
from pdfx.host.reading import read_json
from pdfx.host.urls import scrubbed

_CONVERTED = {"model.cache_vision", "model.gradient_checkpointing", "model.trust_remote_code"}
"""What the converter sets itself; the last says what its own command allowed."""


def origin_of(model: Path, run: Path, config: Config, last_step: int) -> tuple[str, list[str]]:
    """Where an export comes from, in words, and what there is to say about it.

    Raises:
        UserError: it was made from another run, or its record is damaged.
    """
    if not (model / RECORD).is_file():
        return str(model), [f"{model} has no {RECORD}, so it cannot be told whether it was made from {run}."]
    try:
        record = read_json(model / RECORD)
        step = int(record["step"])
        found = list(changes(scrubbed(record["config"]), scrubbed(config.model_dump(mode="json"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{model / RECORD} is damaged; convert the run again.") from None
    changed = {name: (there, own) for name, there, own in found if name not in _CONVERTED}
    moved = "train.output_dir" in changed and len(changed) > 1
    foreign = {
        name: values for name, values in changed.items() if moved or (name.startswith(DECISIVE) and name not in FREE)
    }
    cure = f"Give the model that 'pdfx convert {run}' writes."
    if foreign:
        raise UserError(f"{model} was made from another run than {run}: {_difference(foreign)}. {cure}")
    if step > last_step:
        raise UserError(
            f"{model} was made from step {step}, and {run} has only reached step {last_step}, so it is another "
            f"run. {cure}"
        )
    notes = [f"The run's settings have changed since {model} was made: {_difference(changed)}."] if changed else []
    return f"{model}, step {step}", notes


def _difference(changed: dict[str, tuple[object, object]]) -> str:
    words = [f"{name} is {there!r} there and {own!r} in the run" for name, (there, own) in sorted(changed.items())[:3]]
    return "; ".join(words) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
