"""Does one epoch's loss curve depend on chunking, or on the number of ranks?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import yaml
from common import RESULTS, answer, at_most, start
from workload import ROOT, Workload, pairs

from data_tools.build.builder import build_shards

matplotlib.use("svg")

BATCH = 8
RUNS = {
    "one process": (1, BATCH, 1),
    "one process, 4 chunks": (1, BATCH // 4, 4),
    "2 ranks": (2, BATCH // 2, 1),
    "2 ranks, 2 chunks each": (2, BATCH // 4, 2),
}
"""Ranks, pairs that a rank embeds at once, and chunks; the global batch is the same."""


def make_shards(folder: Path, count: int) -> Path:
    """Real shards of the benchmarks' photographs and prose."""
    folder.mkdir()
    lines = []
    for number, (query, target) in enumerate(pairs(count, largest_side=112, most_words=40)):
        for image in query["images"]:
            image.save(folder / f"{number}.png")
        query = {"text": query["text"], "images": [f"{number}.png" for _ in query["images"]]}
        lines.append(json.dumps({"key": f"pair{number}", "query": query, "target": target}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_shards(folder / "records.jsonl", folder, folder / "shards", samples_per_shard=64)
    return folder / "shards"


def losses(name: str, folder: Path, workload: Workload, shards: Path) -> list[float]:
    """The losses of one epoch as ``launch/train.py`` writes them."""
    ranks, pairs_at_once, chunks = RUNS[name]
    run = folder / name.replace(" ", "-").replace(",", "")
    tree = workload.config.model_dump(mode="json")
    tree["data"] |= {"train": str(shards), "num_workers": 0}
    # Mutual information is estimated per rank, so that its runs differ by nature; orthogonality is the same sum on any
    # number of ranks.
    tree["objective"] |= {"diversity": "orthogonality", "temperature": 0.05}
    tree["train"] |= {
        "output_dir": str(run),
        "deepspeed": str(ROOT / "ds_configs" / "zero3.json"),
        "max_steps": None,
        "num_train_epochs": 1,
        "per_device_train_batch_size": pairs_at_once,
        "gradient_accumulation_steps": chunks,
        "learning_rate": 3e-4,
        "warmup_steps": 5,
        "logging_steps": 1,
        "tensorboard": False,
    }
    recipe = folder / f"{run.name}.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    launcher = (
        [sys.executable]
        if ranks == 1
        else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*launcher, str(ROOT / "launch" / "train.py"), str(recipe)],
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    styles = ("-", "--", "-.", ":")
    for (name, values), style, width in zip(curves.items(), styles, (5, 3.5, 2, 1), strict=True):
        axes.plot(range(1, len(values) + 1), values, style, linewidth=width, label=f"{name}, ZeRO-3")
    axes.set(xlabel="step", ylabel="loss", title=f"One epoch, {BATCH} pairs per step, the same seed")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    options = start(__doc__)
    workload = Workload("tiny", 3, True, prefix={"length": 8})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = make_shards(folder / "data", BATCH * (4 if options.tiny else 40))
        curves = {name: losses(name, folder, workload, shards) for name in RUNS}
    reference = curves["one process"]
    differences = {
        name: max(abs(a - b) for a, b in zip(reference, values, strict=True))
        for name, values in curves.items()
        if values is not reference
    }
    if options.save:
        draw(curves, RESULTS / "loss_compare.svg")
    targets = [
        at_most(f"largest difference of {name} from one process", value, 1e-3) for name, value in differences.items()
    ]
    answer(
        options,
        __doc__,
        targets,
        {"steps": len(reference), "first_loss": reference[0], "last_loss": reference[-1], "curves": curves},
    )


if __name__ == "__main__":
    main()
