"""Embed a JSONL file of texts and images with an exported model, over any number of processes.

Batches are cut from the whole file before they are shared out, so every batch holds the same items whatever the number
of processes.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save as safetensors_bytes

from pdfx.data.picture_folder import PictureError, PictureFolder
from pdfx.data.schema import Side, explain
from pdfx.distributed.world import launched_ranks, launched_world_size, pick_device
from pdfx.embedder.exports import check_export, opened_export
from pdfx.errors import UserError
from pdfx.host.files import draft_beside, require_folder, write_atomically
from pdfx.host.system_errors import naming
from pdfx.model.pictures import ImageError, decode_image
from pdfx.model.processing import ItemError

if TYPE_CHECKING:
    from pdfx.model import EmbedderOutput, ParallelEmbedder

SUFFIXES = (".safetensors", ".npy")
NAMED_LINES = 5
"""Of the lines whose texts were cut."""


@dataclass(frozen=True)
class EmbedJob:
    """What to embed and how.

    Attributes:
        model: directory of an export.
        input: JSONL file; each line ``{"text": "...", "images": ["path", ...]}``, at least one of the two.
        out: ``.safetensors`` (one tensor named ``embeddings``) or ``.npy``; float32, one row per line.
        side: ``query`` or ``target``, which chooses the instruction.
        paths: ``all`` gives [n, K, D], ``fused`` [n, F], and the number of one path [n, D] (only that path is run).
        batch_size: items of one forward pass.
        images: folder, or tar, that image paths start from; the input file's own folder if None.
        truncate_dim: leading dimensions to keep, normalised again (Matryoshka); all if None.
        trust_remote_code: run the model code that the export brings, in the place of the installed library's.
    """

    model: Path
    input: Path
    out: Path
    side: str = "query"
    paths: str = "all"
    batch_size: int = 32
    images: Path | None = None
    truncate_dim: int | None = None
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raises UserError for what is wrong without reading the input or loading the model."""
        if self.out.suffix not in SUFFIXES:
            raise UserError(f"The output {self.out} must end in {' or '.join(SUFFIXES)}, which decides its format.")
        require_folder(self.out)
        if self.paths not in ("all", "fused") and not self.paths.isdecimal():
            raise UserError(f"--paths is '{self.paths}', and must be 'all', 'fused', or the number of one path.")
        check_export(self.model)

    @property
    def image_folder(self) -> PictureFolder:
        return PictureFolder(self.input.parent if self.images is None else self.images)


def read_lines(job: EmbedJob) -> list[Side]:
    """The checked lines of a job's input.

    Raises:
        UserError: the file is missing or empty, a line has the wrong form, or an image file is missing; file, line and
            key are named.
    """
    try:
        text = job.input.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no input file {job.input}.") from None
    if not text.strip():
        raise UserError(f"{job.input} has no lines, so there is nothing to embed.")
    sides = []
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            sides.append(Side.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{job.input} line {number}: {explain(error).removesuffix('.')}.") from None
        try:
            for name in sides[-1].images:
                job.image_folder.require(name)
        except PictureError as error:
            raise UserError(f"{job.input} line {number}: {error}.") from None
    return sides


def embed_file(
    job: EmbedJob, processes: int = 1, on_progress: Callable[[int, int], None] | None = None
) -> tuple[int, ...] | None:
    """Run a job in this process, in ``processes`` new ones, or as one rank of a torchrun launch; the shape written, or
    None on ranks other than 0.

    Args:
        on_progress: called with (lines done, lines in all); under torchrun only rank 0's own lines count.

    Raises:
        UserError: anything that the user can cure, in one sentence.
    """
    job.check()
    world_size = launched_world_size()
    if world_size > 1 and processes > 1:
        raise UserError(f"--processes {processes} was given under a launch of {world_size} ranks; use one of the two.")
    if world_size > 1:
        return _embed_as_rank(job, on_progress)
    with draft_beside(job.out) as parts:
        parts.mkdir()
        if processes > 1:
            _embed_in_processes(job, parts, processes, on_progress)
        else:
            write_part(job, parts, 0, 1, pick_device(), on_progress)
        return merge_parts(job, parts, processes)


def write_part(
    job: EmbedJob,
    parts: Path,
    rank: int,
    world_size: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Embed this rank's share of the batches and write it into the folder ``parts``, unless it is empty."""
    lines = read_lines(job)
    starts = range(0, len(lines), job.batch_size)
    mine = starts[len(starts) * rank // world_size : len(starts) * (rank + 1) // world_size]
    rows, cut = [], []
    with opened_export(job.model, device, job.trust_remote_code, verify=rank == 0) as model:
        chosen = _chosen_path(job, model.config)
        for start in mine:
            batch = lines[start : start + job.batch_size]
            output = _embed(job, model, start, batch, chosen)
            own = output.paths if chosen is None else output.paths[:, 0]
            rows.append(output.fused if job.paths == "fused" else own)
            cut += [number for number, side in enumerate(batch, start + 1) if model.processor.is_cut(side.text)]
            if on_progress is not None:
                on_progress(start + len(batch) - mine.start, min(mine.stop, len(lines)) - mine.start)
    if rows:
        limit, numbers = model.processor.settings["max_text_tokens"], np.array(cut, dtype=np.int64)
        with naming(job.out):
            np.savez(_part(parts, rank), rows=torch.cat(rows).float().numpy(), cut=numbers, limit=limit)


def _embed(
    job: EmbedJob, model: ParallelEmbedder, start: int, batch: list[Side], chosen: list[int] | None
) -> EmbedderOutput:
    """Embed the lines that follow the first ``start``. Raises UserError if one cannot be."""
    items = [_item(job, number, side) for number, side in enumerate(batch, start=start + 1)]
    try:
        with warnings.catch_warnings():
            # Texts that were cut are reported once, with their lines.
            warnings.filterwarnings("ignore", ".* were cut there")
            return model.embed(items, job.side, batch_size=len(items), paths=chosen, truncate_dim=job.truncate_dim)
    except ItemError as error:
        images = ", ".join(job.image_folder.describe(name) for name in batch[error.number].images)
        images = f" with the image {images}" if images else ""
        raise UserError(
            f"{job.input} line {start + 1 + error.number}: the item{images} cannot be embedded: {error.reason}."
        ) from None


def _item(job: EmbedJob, number: int, side: Side) -> dict:
    pictures = []
    for name in side.images:
        try:
            pictures.append(decode_image(job.image_folder.read(name)))
        except PictureError as error:
            raise UserError(f"{job.input} line {number}: {error}.") from None
        except ImageError as error:
            raise UserError(
                f"{job.input} line {number}: the image {job.image_folder.describe(name)} cannot be used: {error}."
            ) from None
    return {"text": side.text, "images": pictures}


def _chosen_path(job: EmbedJob, config) -> list[int] | None:
    if job.truncate_dim is not None and not 1 <= job.truncate_dim <= config.hidden_size:
        raise UserError(
            f"--truncate-dim is {job.truncate_dim}, and the model's embeddings have {config.hidden_size} dimensions."
        )
    if not job.paths.isdecimal():
        return None
    if int(job.paths) >= config.paths:
        raise UserError(f"--paths is {job.paths}, and the model in {job.model} has the paths 0 to {config.paths - 1}.")
    return [int(job.paths)]


def _part(parts: Path, rank: int) -> Path:
    return parts / f"{rank:05d}.npz"


def merge_parts(job: EmbedJob, parts: Path, world_size: int) -> tuple[int, ...]:
    """Join the parts in the input's order, write the output atomically, return its shape, and report cut texts."""
    loaded = [np.load(path) for path in (_part(parts, rank) for rank in range(world_size)) if path.exists()]
    embeddings = np.concatenate([part["rows"] for part in loaded])
    with write_atomically(job.out) as stream:
        if job.out.suffix == ".npy":
            np.save(stream, embeddings)
        else:
            tensors, record = {"embeddings": torch.from_numpy(embeddings)}, {"side": job.side, "paths": job.paths}
            stream.write(safetensors_bytes(tensors, record))
    cut = np.concatenate([part["cut"] for part in loaded]).tolist()
    if cut:
        more = f" and {len(cut) - NAMED_LINES} more" if len(cut) > NAMED_LINES else ""
        sentence = (
            f"{len(cut)} of {len(embeddings)} texts are longer than the model's max_text_tokens "
            f"({int(loaded[0]['limit'])}) and were cut there: lines {', '.join(map(str, cut[:NAMED_LINES]))}{more}."
        )
        print(sentence, file=sys.stderr)
    return embeddings.shape


def _embed_as_rank(job: EmbedJob, on_progress: Callable[[int, int], None] | None) -> tuple[int, ...] | None:
    with launched_ranks() as ranks, draft_beside(job.out) if ranks.rank == 0 else nullcontext() as own:
        if own is not None:
            own.mkdir()
        parts = ranks.from_first(own)
        write_part(job, parts, ranks.rank, ranks.size, ranks.device, on_progress if ranks.rank == 0 else None)
        ranks.barrier()
        return merge_parts(job, parts, ranks.size) if ranks.rank == 0 else None


def _embed_in_processes(
    job: EmbedJob, parts: Path, processes: int, on_progress: Callable[[int, int], None] | None
) -> None:
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    threads = max(1, torch.get_num_threads() // processes)
    total = len(read_lines(job))
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(threads, done, stop)) as pool:
        waiting = {pool.submit(_work, job, parts, rank, processes) for rank in range(processes)}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if on_progress is not None:
                    on_progress(done.value, total)
        except BrokenProcessPool:
            raise UserError(
                "An embedding process was killed, most often because memory ran out; use fewer --processes or a "
                "smaller --batch-size."
            ) from None
        finally:
            stop.set()


class _StoppedError(RuntimeError):
    """Another process has failed, and its message is the one to show."""


_shared: Any = None
"""What a worker has in common with the process that started it: the number of lines done, and whether to stop."""


def _start_worker(threads: int, *shared: Any) -> None:
    # Shared counters reach a spawned process through its initializer only, not as arguments of its tasks.
    global _shared
    torch.set_num_threads(threads)
    _shared = shared


def _work(job: EmbedJob, parts: Path, rank: int, world_size: int) -> None:
    counted, (done, stop) = 0, _shared

    def count(lines_done: int, _: int) -> None:
        nonlocal counted
        if stop.is_set():
            raise _StoppedError
        with done.get_lock():
            done.value += lines_done - counted
        counted = lines_done

    write_part(job, parts, rank, world_size, pick_device(rank), count)
