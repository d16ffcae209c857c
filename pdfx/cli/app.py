"""The command line ``pdfx``. Commands import what is slow themselves, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pdfx import __version__
from pdfx.cli.runs import RunArgument, checkpoints, convert, init
from pdfx.cli.shards import shards_app
from pdfx.cli.shared import JsonOption, ProgressBar, ShardsArgument, example, fail, give_json, prints_json
from pdfx.cli.studies import ablate, estimators
from pdfx.config import ConfigError, EvaluateSection, load_config
from pdfx.errors import UserError
from pdfx.host.console import console, open_streams, outlive_stdout
from pdfx.host.system_errors import sentence_of

app = typer.Typer(
    name="pdfx",
    help="Parallel multimodal embeddings: K learnable prefixes on one multimodal language model give K embeddings "
    "per input.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(shards_app, name="shards")

INTERRUPTED = 130
DEFAULTS = EvaluateSection()
ModelArgument = Annotated[Path, typer.Argument(help="Directory that 'pdfx convert' wrote.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the model code inside MODEL; needed if its backbone brings classes of its own. Only for models "
        "whose source you trust.",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Items of one forward pass.")]
DecodersOption = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]
CorruptOption = Annotated[
    float, typer.Option(min=0, max=1, help="Stop if more of the samples cannot be used; one is forgiven, unless 0.")
]


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=lambda value: show_version(value), help="Print the version and stop."
        ),
    ] = False,
) -> None:
    pass


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"pdfx {__version__}")
        raise typer.Exit


app.command(epilog=example("pdfx init my-run", "pdfx init my-run --recipe llava-1.6-7b-lr"))(init)


@app.command(epilog=example("pdfx train recipe.yaml train.max_steps=20", "deepspeed --module pdfx.train recipe.yaml"))
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the run's settings.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as section.key=value.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings, the parameters and the steps, then stop.")
    ] = False,
) -> None:
    """Train in this one process. For several GPUs or machines, start [bold]deepspeed --module pdfx.train RECIPE[/bold]
    or [bold]torchrun -m pdfx.train RECIPE[/bold] instead (srun works too)."""
    from pdfx.faults.stopping import StopRequest

    stop = StopRequest(attended=False)
    from pdfx.train import train as run

    outlive_stdout()
    run(load_config(recipe, overrides or ()), stop, dry_run)


app.command(
    epilog=example(
        "pdfx convert runs/quickstart --out exported",
        "pdfx convert runs/quickstart --out exported --checkpoint best --dtype bfloat16",
        "pdfx convert runs/quickstart --out adapter --adapter",
    )
)(convert)
app.command(epilog=example("pdfx checkpoints runs/quickstart", "pdfx checkpoints runs/quickstart --verify --json -"))(
    checkpoints
)


@app.command(
    epilog=example(
        "pdfx embed exported queries.jsonl --out queries.safetensors",
        "pdfx embed exported documents.jsonl --side target --paths fused --processes 4 --out documents.npy",
        'One line of the input: {"text": "a red square", "images": ["square.png"]}',
    )
)
def embed(
    model: ModelArgument,
    input: Annotated[
        Path, typer.Argument(metavar="INPUT.jsonl", help="One item per line: text, images (a list of paths), or both.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .safetensors (one tensor named 'embeddings') or .npy, float32, one row per line."
        ),
    ],
    side: Annotated[
        Literal["query", "target"], typer.Option(help="Chooses the instruction that the model was trained with.")
    ] = "query",
    paths: Annotated[
        str,
        typer.Option(
            help="'all': every path, (n, K, D). 'fused': (n, F). A number: that path alone, (n, D), at the cost of one."
        ),
    ] = "all",
    batch_size: BatchOption = 32,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes to share the work; each takes a GPU if there are any. Under torchrun leave it at 1.",
        ),
    ] = 1,
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from; the input file's own by default.")
    ] = None,
    truncate_dim: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many leading dimensions (for models trained with matryoshka_dims)."),
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Embed the items of a JSONL file."""
    from pdfx.evaluate.embed import EmbedJob, embed_file

    job = EmbedJob(model, input, out, side, paths, batch_size, images, truncate_dim, trust_remote_code)
    with ProgressBar() as bar:
        shape = embed_file(job, processes, bar.counter("embedding"))
    if shape is not None:
        print(f"{out}: {' x '.join(str(size) for size in shape)}")


@app.command(
    epilog=example(
        "pdfx evaluate exported shards/evaluation --json metrics.json",
        "pdfx evaluate exported shards/mmeb/* --json mmeb.json",
    )
)
def evaluate(
    model: ModelArgument,
    shards: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARDS...", help="Directories that 'pdfx shards build' wrote, each evaluated by itself."
        ),
    ],
    json_file: JsonOption = None,
    batch_size: BatchOption = DEFAULTS.batch_size,
    num_workers: DecodersOption = 0,
    max_corrupt_share: CorruptOption = DEFAULTS.max_corrupt_share,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure retrieval: per path, fused and best-of-paths, beside chance; of several data sets also averages, those of
    MMEB's table among them.

    Each distinct query searches in all distinct targets of its data set, or in its own candidates; all targets with its
    target_id are right. Samples that cannot be used are named, counted and left out.
    """
    from pdfx.evaluate.data_sets import evaluate_export, report_of
    from pdfx.evaluate.tables import LEGEND, notes, print_tables, result_tables

    quiet = prints_json(json_file)
    settings = EvaluateSection(batch_size=batch_size, max_corrupt_share=max_corrupt_share)
    with ProgressBar() as bar:
        results = evaluate_export(model, shards, settings, num_workers, trust_remote_code, bar.counter, bar.say)
    if results is None:
        return
    if not quiet:
        print_tables(result_tables(results), console())
        print("\n".join([LEGEND, *notes(results)]))
    give_json(report_of(results), json_file)


@app.command(
    epilog=example(
        "pdfx diversity exported shards/evaluation --out diversity.html",
        "pdfx diversity exported shards/evaluation --json diversity.json",
    )
)
def diversity(
    model: ModelArgument,
    shards: ShardsArgument,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write, with heat maps and examples; it holds everything it shows.")
    ] = None,
    json_file: JsonOption = None,
    batch_size: BatchOption = DEFAULTS.batch_size,
    num_workers: DecodersOption = 0,
    max_corrupt_share: CorruptOption = DEFAULTS.max_corrupt_share,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure how far the paths of a model differ and whether that helps, each figure beside its control: how alike
    they are, in how many directions they vary, what they find, fail at and attend to."""
    from pdfx.evaluate.paths.view import print_view, show_diversity

    quiet = prints_json(json_file)
    settings = EvaluateSection(batch_size=batch_size, max_corrupt_share=max_corrupt_share)
    with ProgressBar() as bar:
        figures, view = show_diversity(
            model, shards, settings, out, num_workers, trust_remote_code, bar.counter("embedding"), bar.say
        )
    if not quiet:
        print_view(view, console())
        if out is not None:
            print(out)
    give_json(figures.plain(), json_file)


@app.command(epilog=example("pdfx report runs/quickstart exported shards/evaluation --out report.html"))
def report(
    run: RunArgument,
    model: ModelArgument,
    shards: ShardsArgument,
    out: Annotated[Path, typer.Option(help="HTML file to write; it holds everything it shows.")],
    batch_size: BatchOption = DEFAULTS.batch_size,
    num_workers: DecodersOption = 0,
    max_corrupt_share: CorruptOption = DEFAULTS.max_corrupt_share,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write one HTML page about a run: metrics, loss curves, diversity of the paths, and examples with their
    pictures."""
    from pdfx.evaluate.report import write_report

    with ProgressBar() as bar:
        settings = EvaluateSection(batch_size=batch_size, max_corrupt_share=max_corrupt_share)
        write_report(
            run, model, shards, out, settings, num_workers, trust_remote_code, bar.counter("embedding"), bar.say
        )
    print(out)


app.command(
    epilog=example(
        "pdfx ablate study.yaml --jobs 2",
        "pdfx ablate study.yaml --launcher 'torchrun --nproc-per-node 8 -m pdfx.train'",
        "pdfx ablate study.yaml --tables-only --page results.md",
        "sbatch --array 0-44 --gpus 1 --wrap 'pdfx ablate study.yaml --number $SLURM_ARRAY_TASK_ID'",
    )
)(ablate)
app.command(epilog=example("pdfx estimators --out estimators", "pdfx estimators --quick --json -"))(estimators)


def with_home(word: str) -> str:
    """An option's value with the home directory in place of ``~``, which shells do not fill in in ``--out=~/x``."""
    option, equals, value = word.partition("=")
    return (
        f"{option}={os.path.expanduser(value)}"
        if equals and option.startswith("--") and value.startswith("~")
        else word
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. What a user can cure ends with one sentence on stderr and exit code 2."""
    open_streams()
    try:
        try:
            app([with_home(word) for word in (sys.argv[1:] if arguments is None else arguments)], prog_name="pdfx")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (UserError, ConfigError) as error:
        fail(str(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            fail("Interrupted.", INTERRUPTED)
        raise
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        fail(sentence)
