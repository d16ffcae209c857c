"""The directory of a run: made, checked against mistakes, and what the trainer keeps of a set-up to recognise its own checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from pdfx.checkpoint.directory import DIRECTORY, checkpoint_paths
from pdfx.config import Config, TrainSection, dump_config
from pdfx.errors import UserError
from pdfx.files import write_atomically
from pdfx.model import ParallelEmbedder
from pdfx.train.run_lock import LOCK
from pdfx.train.stacks import STACKS
from pdfx.train.telemetry import METRICS

CONFIG = "config.yaml"
OURS = {DIRECTORY, LOCK, STACKS}
"""What may be there before a run's first file, its configuration."""

IRRELEVANT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "inputs", "attention", "_attn_implementation"}
"""Fields of a model's configuration that do not decide which parameters it has."""


def open_run_directory(train: TrainSection) -> Path:
    """Make ``train.output_dir`` if it is missing.

    Raises:
        UserError: it cannot be a run's directory, or ``train.resume`` is ``never`` and it already holds a run.
    """
    run = Path(train.output_dir)
    try:
        (run / DIRECTORY).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"train.output_dir '{run}' cannot be made a run's directory: {error.strerror}.") from None
    strangers = sorted(path.name for path in run.iterdir() if path.name not in OURS)
    if strangers and not (run / CONFIG).exists():
        raise UserError(f"train.output_dir '{run}' holds '{strangers[0]}' but no run; choose a new directory or an earlier run's.")
    if train.resume == "never" and (checkpoint_paths(run) or (run / METRICS).exists()):
        raise UserError(f"train.output_dir '{run}' already holds a run and train.resume is 'never'; choose another directory, or set train.resume to 'auto'.")
    return run


def write_config(run: Path, config: Config) -> None:
    """Keep the resolved configuration with the run."""
    with write_atomically(run / CONFIG) as stream:
        stream.write(dump_config(config).encode())


def identity(embedder: ParallelEmbedder, config: Config) -> dict:
    """What must be equal in a checkpoint and in the run that takes it up: the architecture, and what is trained."""
    model = config.model
    lora = model.lora.model_dump(exclude={"dropout"}) if model.lora else "none"
    tree = {
        "embedder": architecture(embedder.config.to_dict()),
        "lora": lora,
        "train_vision": model.train_vision,
        "train_projector": model.train_projector,
        "learn_temperature": config.objective.learn_temperature,
        "bf16": config.train.bf16,
    }
    # Through JSON, so that it compares equal to what was read back from a file.
    return json.loads(json.dumps(tree))


def architecture(settings: dict) -> dict:
    """A model's configuration without what does not decide its parameters."""
    return {str(name): architecture(value) if isinstance(value, dict) else value for name, value in settings.items() if name not in IRRELEVANT}
