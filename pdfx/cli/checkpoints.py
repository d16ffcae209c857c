"""The commands about what a run saved: ``checkpoints`` and ``convert``."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pdfx.cli.shared import JsonOption, ProgressBar, give_json, prints_json
from pdfx.host.console import console

RunArgument = Annotated[Path, typer.Argument(help="Directory of a run (train.output_dir).")]


def checkpoints(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Also read every file and compare its checksum.")] = False,
    json_file: JsonOption = None,
) -> None:
    """List a run's checkpoints: step, size, age, whether each is whole and which is best. Ends with 1 if one is not
    whole."""
    from pdfx.checkpoint.listing import list_checkpoints, table_of
    from pdfx.checkpoint.retention import Retention, retention_of
    from pdfx.config import load_config
    from pdfx.config.run_files import CONFIG

    alone = prints_json(json_file)
    # Without a readable configuration there is no best checkpoint, but all else can be shown.
    rule = retention_of(load_config(run / CONFIG).train) if (run / CONFIG).is_file() else Retention(1)
    with ProgressBar() as bar:
        rows = list_checkpoints(run, rule, verify, bar.counter("verifying") if verify else None)
    if not alone:
        console().print(table_of(rows, rule, verify) if rows else f"{run} has no checkpoints.")
        for row in rows:
            if row.problem:
                print(row.problem)
            if row.strays:
                print(
                    f"Step {row.step:,} holds {len(row.strays)} files that its manifest does not list, and that "
                    f"nothing reads: {', '.join(row.strays[:3])}."
                )
    give_json([asdict(row) for row in rows], json_file)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


def convert(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint's step, 'newest' (whole one) or 'best' (by train.metric_for_best_model).")
    ] = "newest",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the written weights; the trained one by default."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, as 5GB, 500MB or 2GiB.")] = "5GB",
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Write LoRA as a PEFT adapter and what else was trained, and not the backbone."),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the Python files of model.modules. Only for runs you trust."),
    ] = False,
    skip_check: Annotated[
        bool,
        typer.Option(
            "--skip-check", help="Do not re-embed with the result, for machines that cannot hold the whole model."
        ),
    ] = False,
) -> None:
    """Turn a run's checkpoint into a Hugging Face model directory (LoRA merged, no GPU needed), and check that it
    embeds as the trainer did."""
    from pdfx.convert import convert as run_conversion

    # So that what is half written goes when the job's time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tell = console(sys.stderr, soft_wrap=True).print
    run_conversion(
        run,
        out,
        checkpoint,
        dtype,
        max_shard_size,
        adapter,
        not skip_check,
        tell,
        trust_remote_code,
    )
    print(out)
