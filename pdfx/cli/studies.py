"""The commands that study the method: ``ablate`` and ``estimators``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pdfx.cli.shared import JsonOption, ProgressBar, give_json, prints_json
from pdfx.errors import UserError


def estimators(
    out: Annotated[
        Path, typer.Option(help="Folder for estimators.json, estimators.md and estimators.svg; made if needed.")
    ] = Path("estimators"),
    json_file: JsonOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes, in seconds: shows that it works, its figures mean nothing.")
    ] = False,
) -> None:
    """Judge the terms of objective.diversity on data whose dependence is known: bias, spread, what independent data
    shows, whether their gradients lower the true dependence, and whether a fast encoder gets away from them. Takes
    about twenty minutes on one core."""
    quiet = prints_json(json_file)
    from pdfx.study.estimator_report import write_study
    from pdfx.study.estimators import QUICK, Plan, run_study

    with ProgressBar() as bar:
        result = write_study(run_study(QUICK if quick else Plan(), bar.counter("measuring")), out)
    if not quiet:
        for claim in result["claims"]:
            print(
                f"{'holds ' if claim['holds'] else 'MISSED'} {claim['value']:8.3f} {claim['goal']:>7} {claim['claim']}"
            )
        print(out / "estimators.md")
    give_json(result, json_file)


def ablate(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY.yaml...", help="Files that describe studies.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    launcher: Annotated[
        str | None,
        typer.Option(help="Words that start one run, as in 'torchrun --nproc-per-node 8 -m pdfx.train'."),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(min=0, help="Make only this run of those that --list shows, as a task of a SLURM array does."),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Make runs of these rows only, as in ssc,k3.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Print all runs with their numbers and stop.")] = False,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Make no runs.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(help="Markdown file for the tables, with figures and an HTML file beside it; OUT/results.md."),
    ] = None,
) -> None:
    """Compare rows of settings over seeds, at equal steps, FLOPs or time: make the runs that are missing, then write
    tables with paired errors.

    A run that was interrupted resumes, and a run with a record is not made again. Ends with 1 if a run failed.
    """
    from pdfx.study.plan import planned_runs, read_study
    from pdfx.study.results import write_page
    from pdfx.study.runs import LAUNCHER, Runner, ensembles

    # So that the runs save their checkpoints if the job's time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    read = [(path, read_study(path)) for path in studies]
    if len(read) > 1 and not (tables_only or show):
        raise UserError("Several studies at once only give tables; add --tables-only, or make one after the other.")
    if show:
        print("\n".join(f"{place} {run.name}" for _, study in read for place, run in enumerate(planned_runs(study))))
        return
    bar, failed = ProgressBar(), []
    for _, study in read:
        runner = Runner(study, launcher or LAUNCHER, bar.say, jobs)
        runs = runner.missing()
        if number is not None:
            runs = [run for run in runs if run == _numbered(planned_runs(study), number)]
        if rows is not None:
            runs = [run for run in runs if run.row in _known(rows.split(","), list(study.rows))]
        failed += [] if tables_only else runner.make(runs)
        for lost in ensembles(study):
            bar.say(
                f"{lost.name} needs its members' embeddings in {study.out}/runs, which are gone; delete the members' "
                "records to make them again."
            )
    if number is None:
        file = page or Path(read[0][1].out) / "results.md"
        write_page(read, file)
        print(file)
    if failed:
        raise typer.Exit(1)


def _numbered(runs: list, number: int):
    if number >= len(runs):
        raise UserError(f"--number is {number}, and the study has the runs 0 to {len(runs) - 1}.")
    return runs[number]


def _known(wanted: list[str], rows: list[str]) -> list[str]:
    unknown = [row for row in wanted if row not in rows]
    if unknown:
        raise UserError(f"--rows names '{unknown[0]}', which is not a row of the study; it has {', '.join(rows)}.")
    return wanted
