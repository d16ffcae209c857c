"""One self-contained HTML page about a run: settings, metrics, curves, diversity of the paths, and examples."""

from __future__ import annotations

from pathlib import Path

from pdfx import __version__
from pdfx.checkpoint.identity import DECISIVE, FREE, changes
from pdfx.config import Config, EvaluateSection, dump_config, load_config
from pdfx.config.run_files import CONFIG, METRICS
from pdfx.data import ShardedDataset
from pdfx.distributed.world import World, pick_device
from pdfx.embedder.exports import RECORD, opened_export
from pdfx.errors import UserError
from pdfx.evaluate import figures
from pdfx.evaluate.data_sets import ALL, evaluator_of
from pdfx.evaluate.embedding import Say, embed_shards
from pdfx.evaluate.figures import Example, Picture, Points, find_examples
from pdfx.evaluate.metrics import PRECISION
from pdfx.evaluate.paths.view import PathView, reading_again, view_of
from pdfx.evaluate.retrieval import DIRECTIONS, retrieval_metrics
from pdfx.evaluate.tables import (
    DIRECTION_LABELS,
    LEGEND,
    measured_directions,
    metric_table,
    remarks,
)
from pdfx.host.console import ShowProgress
from pdfx.host.files import require_folder, write_atomically
from pdfx.host.html import render_page
from pdfx.host.reading import parse_json, read_bounded, read_json
from pdfx.host.urls import scrubbed, without_secrets

_LARGEST_METRICS = 1 << 30
_CONVERTED = {"model.cache_vision", "model.gradient_checkpointing", "model.trust_remote_code"}
"""What the converter sets itself; the last says what its own command allowed."""


def write_report(
    run: Path,
    model: Path,
    shards: str | Path,
    out: Path,
    settings: EvaluateSection,
    num_workers: int = 0,
    trust_remote_code: bool = False,
    progress: ShowProgress | None = None,
    say: Say | None = None,
) -> dict[str, float]:
    """Evaluate the export, write the page in one atomic step, and return the metrics that it shows.

    Raises:
        UserError: the run, the model or the shards cannot be used, or there is no folder to write to.
    """
    require_folder(out)
    config, records = read_run(run)
    origin, notes = origin_of(model, run, config, max((record["step"] for record in records), default=0))
    if say:
        for sentence in notes:
            say(sentence)
    dataset = ShardedDataset(shards)
    with opened_export(model, pick_device(), trust_remote_code) as embedder:
        alone = World(0, 1, pick_device(), None)
        evaluator = evaluator_of(embedder, settings, alone, num_workers, say)
        queries, targets, counts = embed_shards(evaluator, dataset, progress)
        _, paths = view_of(embedder, dataset, queries, targets)
    metrics = retrieval_metrics(queries, targets, settings.recall_at) | counts
    with reading_again(dataset):
        examples = find_examples(dataset, queries, targets)
    page = render(
        title=run.resolve().name,
        config=config,
        facts=facts_of(
            config, embedder.config, records, " ".join([f"{origin}.", *notes]) if notes else origin, dataset
        ),
        metrics=metrics,
        training=training_pictures(records, embedder.config.paths),
        paths=paths,
        examples=examples,
    )
    with write_atomically(out) as stream:
        stream.write(page.encode())
    return metrics


def read_run(run: Path) -> tuple[Config, list[dict]]:
    """The resolved configuration of a run and the records of its metrics file.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in (CONFIG, METRICS):
        if not (run / name).is_file():
            raise UserError(f"{run} is not a run directory: it has no {name}; give the train.output_dir of a run.")
    records = []
    # A run in progress, or one that was killed, may have left the last line half written.
    for number, line in enumerate(read_bounded(run / METRICS, _LARGEST_METRICS).split(b"\n")[:-1], start=1):
        try:
            records.append(parse_json(line))
            if type(records[-1]["step"]) is not int:
                raise ValueError("its step is not a number")
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{run / METRICS} line {number} is not valid JSON; resume the run, which repairs the file."
            ) from None
    return load_config(run / CONFIG), records


def series(records: list[dict], name: str) -> Points | None:
    """Steps and values of one quantity, or None if it was measured at fewer than two steps."""
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return ([step for step, _ in pairs], [value for _, value in pairs]) if len(pairs) > 1 else None


def training_pictures(records: list[dict], paths: int) -> list[Picture]:
    """Curves of what the run recorded."""
    pictures = []
    losses, fused = [series(records, f"loss_path_{k}") for k in range(paths)], series(records, "loss_fused")
    complete = [points for points in losses if points]
    if fused and complete == losses:
        pictures.append(figures.loss_curves(complete, fused))
    information, r2 = series(records, "mutual_information"), series(records, "mi_r2")
    if information and r2:
        pictures.append(figures.information_curves(information, r2))
    for name, label, caption in (
        (
            "path_r2",
            "R² between paths",
            "Share of a path that a linear map of another one predicts, on pairs that the map was not fitted to. Near "
            "1 the paths do the same work.",
        ),
        (
            "path_cosine",
            "path cosine",
            "Mean cosine between the centred paths of the same training input.",
        ),
        *evaluation_curve(records),
    ):
        points = series(records, name)
        if points:
            pictures.append(figures.single_curve(points, label, caption))
    return pictures


def evaluation_curve(records: list[dict]) -> list[tuple[str, str, str]]:
    """Name, label and caption of the figure that shows best how the run's own evaluations went, if there were any."""
    for prefix, share in (
        ("", ""),
        ("averages/Overall/", ", mean over MMEB's data sets"),
        (f"averages/{ALL}/", ", mean over data sets"),
    ):
        for metric in (PRECISION, "recall@10"):
            name = f"evaluation/{prefix}{DIRECTIONS[0]}/fused/{metric}"
            if any(name in record for record in records):
                return [(name, metric, f"Fused {metric} from query to target on the run's own evaluation data{share}.")]
    return []


def facts_of(
    config: Config, model_config, records: list[dict], origin: str, dataset: ShardedDataset
) -> list[tuple[str, str]]:
    """What was run, as pairs of a name and a value."""
    recipe, lora, train, objective = config.model, config.model.lora, config.train, config.objective
    tuning = f"LoRA r={lora.r}, alpha={lora.alpha}" + (", DoRA" if lora.dora else "") if lora else "full fine-tuning"
    trained = max((record["step"] for record in records), default=0)
    accumulated = f" x {train.gradient_accumulation_steps} accumulated" if train.gradient_accumulation_steps > 1 else ""
    pairs = f"{train.per_device_train_batch_size} pairs per rank{accumulated}"
    return [
        ("Backbone", f"{recipe.path} ({model_config.backbone.model_type})"),
        (
            "Paths",
            f"{model_config.paths}, prefixes of {model_config.prefix_length} in "
            f"{len(model_config.prefix_layers)} layers",
        ),
        (
            "Embedding",
            f"{model_config.hidden_size} dimensions per path, {model_config.fused_size} fused by "
            f"{model_config.fusion}; pooling: {model_config.pooling}",
        ),
        ("Tuning", f"{tuning}; vision tower {'trained' if recipe.train_vision else 'frozen'}"),
        ("Steps", f"{trained} recorded; {pairs}; learning rate {train.learning_rate:g}, {train.lr_scheduler_type}"),
        (
            "Objective",
            f"InfoNCE at temperature {objective.temperature:g}{', symmetric' if objective.symmetric else ''}; "
            f"{diversity_words(config)}",
        ),
        ("Precision and seed", f"{'bf16' if train.bf16 else 'float32'}, seed {train.seed}"),
        ("Training data", ", ".join(without_secrets(data_set.path) for data_set in config.data.training_sets())),
        ("Model", origin),
        ("Evaluation data", f"{dataset.path}: {len(dataset)} samples, fingerprint {dataset.fingerprint[:12]}"),
    ]


def diversity_words(config: Config) -> str:
    objective = config.objective
    if objective.diversity == "none":
        return "no diversity term"
    return f"{objective.diversity.replace('_', ' ')} with weight {objective.diversity_weight:g}"


def render(
    title: str,
    config: Config,
    facts: list[tuple[str, str]],
    metrics: dict[str, float],
    training: list[Picture],
    paths: PathView,
    examples: dict[str, list[Example]],
) -> str:
    """The page. Everything that comes from data or settings is escaped."""
    return render_page(
        "pdfx.evaluate",
        "report.html.j2",
        title=title,
        version=__version__,
        facts=facts,
        tables=[metric_table(metrics, direction) for direction in measured_directions(metrics)],
        remarks=[LEGEND, *remarks(metrics)],
        path_cosine=metrics.get("path_cosine"),
        path_r2=metrics.get("path_r2"),
        training=training,
        paths=paths,
        examples=[(DIRECTION_LABELS[direction], found) for direction, found in examples.items()],
        recipe=dump_config(config),
    )


def origin_of(model: Path, run: Path, config: Config, last_step: int) -> tuple[str, list[str]]:
    """Where an export comes from, in words, and what there is to say about it.

    Raises:
        UserError: it was made from another run, or its record is damaged.
    """
    if not (model / RECORD).is_file():
        return str(model), [f"{model} has no {RECORD}, so whether it was made from {run} is not known."]
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
