"""The quickstart from data to report: every step is announced and timed, and finished steps are skipped when it is
started again.

A step counts as finished while its command, the files it is made from and the steps before it are unchanged; training
that was interrupted continues from its newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path("build/quickstart")
RECIPE = "launch/recipes/quickstart.yaml"
GLOBAL_BATCH = 256
MODEL_CODE = ("launch/quickstart/efficientnet_lite.py", "pdfx/model")
TRAINING_CODE = (
    *(RECIPE, "ds_configs/zero3.json", "launch/train.py", "pdfx/embedder/build.py", "pdfx/embedder/lora.py"),
    *("pdfx/data", "pdfx/objective", "pdfx/checkpoint", "pdfx/train"),
    *MODEL_CODE,
)
SINGLE = (
    "model.paths=1",
    "model.prefix.length=0",
    "objective.path_weight=0",
    f"train.output_dir={BUILD}/single",
)
# DeepSpeed calls functions that PyTorch has renamed, at every step.
QUIET = {"PYTHONWARNINGS": "ignore::FutureWarning"}
# glibc gives large blocks back to the kernel after every use, and the page faults cost up to a third of a step; these
# keep them.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}


@dataclass(frozen=True)
class Step:
    """One command of the quickstart.

    Attributes:
        title: what it does, for the reader.
        command: its words, run in the repository's root.
        output: what it writes, under ``BUILD``.
        sources: files and folders of the repository that it is made from.
        resumes: whether it continues from what an interrupted attempt left.
        environment: variables set for it.
    """

    title: str
    command: tuple[str, ...]
    output: str
    sources: tuple[str, ...]
    resumes: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def steps() -> list[Step]:
    """All steps in order; the model and the shards they name lie under ``BUILD``."""
    import torch

    devices = torch.cuda.device_count()
    ranks = min(devices, 2) or 2
    host = {} if devices else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **KEEP_MEMORY}
    launcher = (_tool("deepspeed"), *f"--num_accelerators {ranks} --master_port {{port}} launch/train.py".split())
    test = f"{BUILD}/data/test"

    def pdfx(words: str) -> tuple[str, ...]:
        return _tool("pdfx"), *words.split(), "--trust-remote-code"

    return [
        Step(
            "Drawing OpenMoji and packing shards",
            (sys.executable, "launch/quickstart/make_data.py", f"{BUILD}/data"),
            "data",
            ("launch/quickstart/make_data.py", "data_tools"),
        ),
        Step(
            "Making the base model",
            (sys.executable, "launch/quickstart/make_model.py", f"{BUILD}/model"),
            "model",
            ("launch/quickstart/make_model.py", *MODEL_CODE[:1]),
        ),
        Step(
            f"Training on {ranks} {'GPUs' if devices else 'CPU ranks'} with ZeRO-3",
            (*launcher, RECIPE, f"train.per_device_train_batch_size={GLOBAL_BATCH // ranks}"),
            "run",
            TRAINING_CODE,
            resumes=True,
            environment=tuple({**QUIET, **host}.items()),
        ),
        Step(
            "Training one embedding without prefixes for as many steps, to compare with",
            (*launcher, RECIPE, f"train.per_device_train_batch_size={GLOBAL_BATCH // ranks}", *SINGLE),
            "single",
            TRAINING_CODE,
            resumes=True,
            environment=tuple({**QUIET, **host}.items()),
        ),
        Step(
            "Converting the checkpoint",
            pdfx(f"convert {BUILD}/run --out {BUILD}/export"),
            "export",
            ("pdfx/convert", "pdfx/checkpoint", *MODEL_CODE),
        ),
        Step(
            "Embedding the unseen pictures",
            pdfx(f"embed {BUILD}/export {test}_pictures.jsonl --out {BUILD}/pictures.safetensors"),
            "pictures.safetensors",
            ("pdfx/evaluate/embed.py", "pdfx/embedder/exports.py"),
        ),
        Step(
            "Evaluating on the unseen concepts",
            pdfx(f"evaluate {BUILD}/export {test} --json {BUILD}/metrics.json"),
            "metrics.json",
            ("pdfx/evaluate",),
        ),
        Step(
            "Writing the report",
            pdfx(f"report {BUILD}/run {BUILD}/export {test} --out {BUILD}/report.html"),
            "report.html",
            ("pdfx/evaluate",),
            # Its many small decompositions lose more time to threads than they gain.
            environment=tuple(host.items()),
        ),
    ]


def fingerprint(step: Step, previous: str) -> str:
    """A hash over the step's command, its sources and all that came before."""
    digest = hashlib.sha256(json.dumps([previous, step.command]).encode())
    for source in step.sources:
        path = ROOT / source
        for file in sorted(chain(path.rglob("*.py"), path.rglob("*.j2"))) if path.is_dir() else (path,):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def run(step: Step, mark: str) -> bool:
    """Do a step unless it is finished. ``mark`` is its fingerprint. Returns whether its output is there now; a failed
    one leaves the reason on the console."""
    output = ROOT / BUILD / step.output
    started, finished = (ROOT / BUILD / "steps" / f"{step.output}.{state}" for state in ("started", "finished"))
    if output.exists() and _read(finished) == mark:
        print("   finished before; skipped", flush=True)
        return True
    finished.unlink(missing_ok=True)
    if not (step.resumes and _read(started) == mark):
        _remove(output)
    started.parent.mkdir(parents=True, exist_ok=True)
    started.write_text(mark)
    command = [word.format(port=_free_port()) for word in step.command]
    begin = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **dict(step.environment)}).returncode
    seconds = time.monotonic() - begin
    if status != 0 or not output.exists():
        print(
            f"   failed after {seconds:.0f} s with exit status {status}: {' '.join(command)}",
            file=sys.stderr,
            flush=True,
        )
        return False
    finished.write_text(mark)
    print(f"   {seconds:.0f} s", flush=True)
    return True


def main() -> int:
    """Run all steps, then print the results; returns the exit status."""
    begin, mark = time.monotonic(), ""
    # The launcher starts plain "python" processes, and DeepSpeed looks for ninja: both must be this environment's.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sequence = steps()
    for number, step in enumerate(sequence, 1):
        print(f"[{number}/{len(sequence)}] {step.title}", flush=True)
        mark = fingerprint(step, mark)
        if not run(step, mark):
            return 1
    print(f"All steps took {time.monotonic() - begin:.0f} s.\n")
    print_results()
    return 0


def print_results() -> None:
    """The retrieval table on the unseen concepts, how far above chance it is, and where the page is."""
    from pdfx.evaluate.retrieval import DIRECTIONS

    metrics = json.loads((ROOT / BUILD / "metrics.json").read_text())
    last = json.loads((ROOT / BUILD / "single/metrics.jsonl").read_text().splitlines()[-1])
    single = {key.removeprefix("evaluation/"): value for key, value in last.items()}
    scores = [key.split("/")[1] for key in metrics if key.startswith(DIRECTIONS[0]) and key.endswith("/recall@1")]
    columns = [(direction, f"recall@{k}") for direction in DIRECTIONS for k in (1, 10)]
    rows = [("one embedding, no prefix", single, "fused"), *((score, metrics, score) for score in scores)]
    print(f"Retrieval among {metrics['targets']:.0f} unseen names (query: picture, target: name)")
    print(f"{'':24}{'picture to name':>22}{'name to picture':>22}")
    print(f"{'':24}" + "".join(f"{name:>11}" for _, name in columns))
    for label, found, score in rows:
        print(f"{label:24}" + "".join(f"{found[f'{direction}/{score}/{name}']:11.3f}" for direction, name in columns))
    print("One embedding costs about a third of the training FLOPs of three paths; docs/results.md compares fairly.")
    for direction, words in zip(DIRECTIONS, ("picture to name", "name to picture"), strict=True):
        fused, chance = (metrics[f"{direction}/{score}/recall@10"] for score in ("fused", "chance"))
        print(f"Fused recall@10, {words}: {fused / chance:.1f} times chance")
    print(f"Report: {ROOT / BUILD / 'report.html'}")


def _tool(name: str) -> str:
    """A program that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
