"""The diversity of paths as a page shows it, and the page of ``pdfx diversity``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pdfx import __version__
from pdfx.config import EvaluateSection
from pdfx.data import SampleError, ShardedDataset
from pdfx.distributed.world import World, pick_device
from pdfx.embedder.exports import opened_export
from pdfx.errors import UserError
from pdfx.evaluate.data_sets import evaluator_of
from pdfx.evaluate.embedding import EmbeddedItems, Say, embed_shards
from pdfx.evaluate.paths.examples import PathExample, PictureMaps, look, path_examples
from pdfx.evaluate.paths.findings import ONE_PATH, Finding, findings
from pdfx.evaluate.paths.measure import PathFigures, measure
from pdfx.evaluate.tables import print_tables
from pdfx.host.console import ShowProgress
from pdfx.host.files import require_folder, write_atomically
from pdfx.host.html import render_page
from pdfx.model import ParallelEmbedder


@dataclass(frozen=True)
class PathView:
    """What the template shows.

    Attributes:
        remark: that there is nothing to compare; empty for several paths.
        maps: of pictures of both sides.
    """

    remark: str
    findings: list[Finding]
    maps: list[PictureMaps]
    examples: list[PathExample]


def view_of(
    model: ParallelEmbedder, dataset: ShardedDataset, queries: EmbeddedItems, targets: EmbeddedItems
) -> tuple[PathFigures, PathView]:
    """Figures and what is shown of them. Raises UserError if the data changed since they were embedded."""
    with reading_again(dataset):
        seen = {side: look(model, dataset, items, side) for side, items in (("query", queries), ("target", targets))}
        examples = path_examples(dataset, queries, targets)
    figures = measure(queries, targets, {side: own.items for side, own in seen.items()})
    remark = ONE_PATH if figures.paths == 1 else ""
    maps = [picture for own in seen.values() for picture in own.maps]
    return figures, PathView(remark, findings(figures), maps, examples)


def print_view(view: PathView, console: Console) -> None:
    """The tables and how to read them."""
    if view.remark:
        print(view.remark, end="\n\n")
    for finding in view.findings:
        table = Table(title=finding.title, title_justify="left")
        for place, name in enumerate(finding.header):
            table.add_column(name, justify="right" if place else "left")
        for row in finding.rows:
            table.add_row(*row)
        print_tables([table], console)
        print(finding.reading, end="\n\n")


@contextmanager
def reading_again(dataset: ShardedDataset) -> Iterator[None]:
    """A sample that cannot be read any more is the user's to cure."""
    try:
        yield
    except SampleError as error:
        raise UserError(f"The evaluation data {dataset.path} changed while it was read. {error}") from None


def show_diversity(
    model: Path,
    shards: str | Path,
    settings: EvaluateSection,
    out: Path | None = None,
    num_workers: int = 0,
    trust_remote_code: bool = False,
    progress: ShowProgress | None = None,
    say: Say | None = None,
) -> tuple[PathFigures, PathView]:
    """Measure how far the paths of an export differ, and write a page about it to ``out`` in one atomic step, if given.

    Raises:
        UserError: the model or the shards cannot be used, or there is no folder to write to.
    """
    if out is not None:
        require_folder(out)
    dataset = ShardedDataset(shards)
    with opened_export(model, pick_device(), trust_remote_code) as embedder:
        alone = World(0, 1, pick_device(), None)
        evaluator = evaluator_of(embedder, settings, alone, num_workers, say)
        queries, targets, _ = embed_shards(evaluator, dataset, progress)
        figures, view = view_of(embedder, dataset, queries, targets)
    if out is not None:
        sizes = ", ".join(f"{count} distinct {side} items" for side, count in figures.items.items())
        page = render_page(
            "pdfx.evaluate",
            "diversity.html.j2",
            title=f"Paths of {model.resolve().name}",
            version=__version__,
            facts=[
                ("Model", str(model)),
                ("Paths", str(figures.paths)),
                ("Evaluation data", f"{dataset.path}: {sizes}, fingerprint {dataset.fingerprint[:12]}"),
            ],
            paths=view,
        )
        with write_atomically(out) as stream:
            stream.write(page.encode())
    return figures, view
