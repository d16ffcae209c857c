"""What a recipe would do, without weights, processes or a GPU: its resolved settings, its parameters, its steps."""

from __future__ import annotations

import os
from functools import partial

from rich.table import Table

from pdfx.config import Config, dump_config
from pdfx.config.deepspeed_file import load_deepspeed_config
from pdfx.data.training_sets import Sequence, open_training_sets
from pdfx.embedder.build import backbone_width, build_on_meta
from pdfx.evaluate.data_sets import open_evaluation
from pdfx.host.console import console
from pdfx.model import ParallelEmbedder
from pdfx.model.prefixes import PREFIX_NAME
from pdfx.train.ineffective import settings_notes
from pdfx.train.schedule import count_steps, settle_warm_ups


def dry_run(config: Config) -> None:
    """Print the resolved configuration, a table of parameters and the number of steps; only on rank 0 if a launcher
    started several.

    Raises:
        UserError: a mistake in model, data or the DeepSpeed file.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        return
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    out = console()
    settings = load_deepspeed_config(config.train.deepspeed, config.train, ranks, partial(backbone_width, config))
    embedder = build_on_meta(config)
    sequence = Sequence(open_training_sets(config.data), config.data, config.train.seed)
    open_evaluation(config)
    if config.train.hooks:
        # It imports what trains, DeepSpeed among it.
        from pdfx.train.hooks.registry import load_hooks

        load_hooks(config)
    steps, plan = count_steps(config.train, sequence.mixture.epoch_samples, ranks)
    notes = settings_notes(config, sequence.sets, steps, ranks)
    notes = [
        f"ZeRO stage {settings['zero_optimization']['stage']} on {ranks} ranks. {plan}",
        *settle_warm_ups(config, steps),
        *notes,
    ]
    out.print(dump_config(config), soft_wrap=True)
    out.print(parameter_table(embedder))
    out.print(mixture_table(sequence))
    out.print("\n".join(notes), soft_wrap=True)


def mixture_table(sequence: Sequence) -> Table:
    """What an epoch takes of each data set."""
    table = Table("data set", "samples", "per epoch", "share", title="Training data")
    for column in table.columns[1:]:
        column.justify = "right"
    for own, size, quota in zip(sequence.sets, sequence.sizes, sequence.quotas, strict=True):
        table.add_row(own.name, f"{size:,}", f"{quota:,}", f"{quota / sequence.mixture.epoch_samples:.1%}")
    return table


def parameter_table(embedder: ParallelEmbedder) -> Table:
    """Trained and frozen parameters of each part of the model."""
    table = Table("part", "trained", "frozen", title="Parameters")
    for column in table.columns[1:]:
        column.justify = "right"
    counts = count_parameters(embedder)
    for part, (trained, frozen) in counts.items():
        table.add_row(part, f"{trained:,}", f"{frozen:,}")
    table.add_section()
    table.add_row("all", *(f"{sum(column):,}" for column in zip(*counts.values(), strict=True)))
    return table


def count_parameters(embedder: ParallelEmbedder) -> dict[str, tuple[int, int]]:
    """(trained, frozen) parameters of each part."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in embedder.named_parameters():
        part = part_of(name, embedder)
        trained, frozen = counts.get(part, (0, 0))
        counts[part] = (
            (trained + parameter.numel(), frozen) if parameter.requires_grad else (trained, frozen + parameter.numel())
        )
    return counts


def part_of(name: str, embedder: ParallelEmbedder) -> str:
    """Which part of the model a parameter belongs to."""
    family = embedder.family
    within = name.removeprefix("backbone.") + "."
    if PREFIX_NAME in name.split("."):
        return "prefixes"
    if "lora_" in name:
        return "adapters"
    # The projector before the tower, which contains it in some families.
    for part, place in (
        ("projector", family.projector),
        ("vision tower", family.vision),
        ("language model", family.decoder),
    ):
        if within.startswith(place + "."):
            return part
    return "fusion" if name.startswith("fusion.") else "other"
