"""How long does a checkpoint hold training up, and how much memory does converting one take?"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from common import Seconds, answer, at_least, at_most, in_fresh_process, in_turns, medians, peak_bytes, start
from workload import pairs, write_backbone

from data_tools.build.builder import build_shards
from pdfx.checkpoint.directory import PROBE, newest_whole
from pdfx.config import Config, parse_config
from pdfx.convert import convert
from pdfx.convert.check import verify_export
from pdfx.convert.conversion import read_run_config
from pdfx.convert.weights import WeightSource
from pdfx.distributed.world import join_world
from pdfx.embedder.build import build_on_meta
from pdfx.train.hooks.saving import Saving
from pdfx.train.trainer import Trainer

STEPS = 6
"""Steps between two checkpoints if they are timed; in practice there are hundreds."""
KINDS = {"full": None, "lora": {"r": 16, "alpha": 32, "dropout": 0.0}}
SHARD = "500MB"


def recipe(folder: Path, size: str, kind: str, run: str, **train) -> Config:
    """A run of one process: the decoder in full or LoRA, the vision tower frozen, ZeRO-3."""
    zero = {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 2_000_000,
        "stage3_prefetch_bucket_size": 2_000_000,
    }
    (folder / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    train = {
        "output_dir": str(folder / run),
        "deepspeed": str(folder / "zero.json"),
        "max_steps": 1000,
        "save_steps": 1000,
        "save_total_limit": 1,
    } | train
    train |= {
        "per_device_train_batch_size": 2,
        "bf16": False,
        "gradient_reduction": "chunk",
        "tensorboard": False,
        "peak_tflops": 1.0,
    }
    return parse_config(
        {
            "model": {"path": str(folder / size), "paths": 2, "lora": KINDS[kind], "prefix": {"length": 16}},
            "inputs": {"max_text_tokens": 48},
            "data": {"train": str(folder / "shards"), "num_workers": 0},
            "objective": {"diversity": "none"},
            "train": train,
        }
    )


def write_inputs(folder: Path, sizes: list[str]) -> None:
    """Backbones and a few dozen pairs as shards."""
    for size in sizes:
        write_backbone(size, folder / size)
    (folder / "pictures").mkdir()
    lines = []
    for number, (query, target) in enumerate(pairs(48, largest_side=112, most_words=32)):
        names = [f"{number}.png" for _ in query["images"]]
        for name, picture in zip(names, query["images"], strict=True):
            picture.save(folder / "pictures" / name)
        lines.append(
            json.dumps(
                {
                    "key": f"pair-{number}",
                    "query": {"text": query["text"], "images": names},
                    "target": {"text": target["text"]},
                }
            )
        )
    (folder / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build_shards(folder / "records.jsonl", folder / "pictures", folder / "shards")


def measure_hold(folder: Path, size: str, count: int) -> dict:
    """Seconds of ``STEPS`` steps without a checkpoint, with one in the background and with one that training waits for;
    and of the calls that save."""
    trainer = Trainer(recipe(folder, size, "full", "timed"), join_world())
    saving = saving_of(trainer)
    held: dict[bool, list[float]] = {True: [], False: []}
    numbers = iter(range(1, 10**6))

    def steps(background: bool | None) -> None:
        saved = 0.0
        for number in range(STEPS):
            trainer.train_step()
            begun = time.perf_counter()
            if background is not None and number == 0:
                trainer.step, trainer.saver.background = next(numbers), background
                saving.save(trainer)
            trainer.saver.advance()
            saved += time.perf_counter() - begun
        begun = time.perf_counter()
        trainer.saver.finish()
        if background is not None:
            held[background].append(saved + time.perf_counter() - begun)

    seconds: Seconds = in_turns(
        {"none": lambda: steps(None), "background": lambda: steps(True), "waiting": lambda: steps(False)}, count
    )
    trainer.close()
    files = newest_whole(folder / "timed")[0].manifest.bytes
    # The first of each is a warm-up.
    calls = {name: held[background][1:] for name, background in (("background", True), ("waiting", False))}
    return {"wall": seconds.wall, "calls": calls, "medians": medians(seconds), "checkpoint_gib": files / 2**30}


def saving_of(trainer: Trainer) -> Saving:
    return next(hook for hook in trainer.hooks if isinstance(hook, Saving))


def train_and_save(folder: Path, size: str, kind: str) -> dict:
    """One step of a run, and its checkpoint."""
    trainer = Trainer(recipe(folder, size, kind, kind, save_in_background=False), join_world())
    trainer.train_step()
    saving_of(trainer).save(trainer)
    trainer.close()
    parameters = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in trainer.engine.module.parameters()]
    return {"parameters": sum(parameters), "checkpoint_gib": newest_whole(folder / kind)[0].manifest.bytes / 2**30}


def measure_start(folder: Path, kind: str) -> dict:
    """The memory of a process that is ready to convert: libraries, the model without weights, the files' headers."""
    config = read_run_config(folder / kind)
    WeightSource(build_on_meta(config).eval(), config.model, newest_whole(folder / kind)[0])
    return {"peak": peak_bytes()}


def measure_conversion(folder: Path, kind: str, dtype: str, shard: str) -> dict:
    """The peak memory of a process that converts, and its largest file. The re-embedding process is watched by itself
    afterwards."""
    out = folder / f"{kind}-{dtype}-{shard}"
    begun = time.perf_counter()
    convert(folder / kind, out, dtype=dtype, max_shard_size=shard, check=False)
    seconds, peak = time.perf_counter() - begun, peak_bytes()
    sizes = [path.stat().st_size for path in out.glob("*.safetensors")]
    return {"peak": peak, "largest": max(sizes), "files": len(sizes), "bytes": sum(sizes), "seconds": seconds}


def measure_check(folder: Path, kind: str, dtype: str, shard: str) -> dict:
    """The most memory of its own that the re-embedding process held, and the same with the mapped weights, which the
    system may drop."""
    most, done = {"own": 0, "mapped": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for child in psutil.Process().children():
                try:
                    memory = child.memory_info()
                except psutil.Error:
                    continue
                most["own"] = max(most["own"], memory.rss - memory.shared)
                most["mapped"] = max(most["mapped"], memory.rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        difference = verify_export(
            folder / f"{kind}-{dtype}-{shard}", newest_whole(folder / kind)[0].path / PROBE, narrow=dtype != "float32"
        )
    finally:
        done.set()
        watcher.join()
    return {**most, "difference": difference}


PARTS = {
    "hold": measure_hold,
    "train": train_and_save,
    "start": measure_start,
    "convert": measure_conversion,
    "check": measure_check,
}


def main() -> None:
    options = start(__doc__)
    if options.part:
        name, folder, *words = json.loads(options.part)
        print(json.dumps(PARTS[name](Path(folder), *words)))
        return
    timed, converted = ("tiny", "tiny") if options.tiny else ("tenth", "half")
    cases = [
        ("lora", "bfloat16", "5GB"),
        ("lora", "bfloat16", SHARD),
        ("full", "bfloat16", SHARD),
        ("full", "float32", SHARD),
    ]
    with tempfile.TemporaryDirectory() as scratch:

        def part(name: str, *words):
            return in_fresh_process(json.dumps([name, scratch, *words]), options)

        write_inputs(Path(scratch), sorted({timed, converted}))
        hold = part("hold", timed, options.pairs)
        runs = {kind: part("train", converted, kind) for kind in KINDS}
        starts = {kind: part("start", kind)["peak"] for kind in KINDS}
        found = {case: {**part("convert", *case), "check": part("check", *case)} for case in cases}
    answer(options, __doc__, targets_of(hold, runs, starts, found), details_of(hold, runs, starts, found))


def added(hold: dict, side: str) -> list[float]:
    """Seconds per checkpoint that the steps took longer than without one."""
    return [own - without for own, without in zip(hold["wall"][side], hold["wall"]["none"], strict=True)]


def targets_of(hold: dict, runs: dict, starts: dict, found: dict) -> list[dict]:
    calls = statistics.median(
        own / waiting for own, waiting in zip(hold["calls"]["background"], hold["calls"]["waiting"], strict=True)
    )
    growth = max((case["peak"] - starts[kind]) / case["largest"] for (kind, *_), case in found.items())
    whole = max(case["peak"] / case["bytes"] for case in found.values())
    return [
        at_most(
            "time that a checkpoint in the background holds the loop up over that of one it waits for", calls, 0.35
        ),
        at_most(
            f"memory that a conversion takes over its largest file, without {max(starts.values()) / 2**30:.2f} GiB "
            "for the process itself",
            growth,
            1.5,
        ),
        at_most("a conversion's whole peak memory, libraries included, over the bytes it writes", whole, 1.5),
        at_least(
            "billions of parameters of the converted model", min(run["parameters"] for run in runs.values()) / 1e9, 0.5
        ),
    ]


def details_of(hold: dict, runs: dict, starts: dict, found: dict) -> dict:
    timing = {f"{side}_held_up_seconds": round(statistics.median(hold["calls"][side]), 3) for side in hold["calls"]}
    timing |= {
        f"{side}_added_seconds": round(statistics.median(added(hold, side)), 3) for side in ("background", "waiting")
    }
    sizes = {
        "timed_checkpoint_gib": round(hold["checkpoint_gib"], 3),
        "start_gib": {kind: round(peak / 2**30, 3) for kind, peak in starts.items()},
    }
    cases = {
        " ".join(case): {
            "peak_gib": round(own["peak"] / 2**30, 3),
            "largest_file_gib": round(own["largest"] / 2**30, 3),
            "peak_over_largest_file": round(own["peak"] / own["largest"], 3),
            "growth_over_largest_file": round((own["peak"] - starts[case[0]]) / own["largest"], 3),
            "files": own["files"],
            "seconds": round(own["seconds"], 1),
            "check_own_gib": round(own["check"]["own"] / 2**30, 3),
            "check_with_mapped_weights_gib": round(own["check"]["mapped"] / 2**30, 3),
        }
        for case, own in found.items()
    }
    return {**hold["medians"], **timing, **sizes, "runs": runs, "conversions": cases}


if __name__ == "__main__":
    main()
