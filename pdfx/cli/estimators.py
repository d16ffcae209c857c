"""The command ``pdfx estimators``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdfx.cli.shared import JsonOption, ProgressBar, give_json, prints_json


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
    about an hour on one core."""
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
