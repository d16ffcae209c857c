"""The trainer on two real ranks: it stops and goes on exactly, and mistakes end every rank with one sentence."""

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_runs import tiny_config, tiny_shards

from pdfx.config import Config

LORA = {"r": 2, "alpha": 4, "dropout": 0.3, "targets": ["q_proj"]}


def recipe(
    folder: Path, run: str, stage: str = "zero2", model: dict | None = None, data: dict | None = None, **train
) -> Config:
    train = {"max_steps": 4, "save_steps": 2, "output_dir": str(folder / run)} | train
    return tiny_config(folder, "qwen2_vl", stage, model={"lora": LORA} | (model or {}), data=data or {}, train=train)


def run_trainer(config: Config, signal_rank: int | None = None) -> str:
    """In a rank: the whole run; the sentence where it ends with one, and otherwise how it ended."""
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = None
    stop = StopRequest()
    if signal_rank == dist.get_rank():
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        trainer = Trainer(config, join_world())
        return "finished" if trainer.run(stop) else "stopped"
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return f"exit code {error.code}"
    finally:
        if trainer is not None:
            trainer.close()
            trainer.engine.destroy()


def metrics(folder: Path, run: str) -> str:
    return (folder / run / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.mark.parametrize(
    ("stage", "model"), [("zero1", {}), ("zero2", {"lora": None}), ("zero3", {"fusion": "softmax"})]
)
def test_a_signal_to_one_rank_saves_on_all_and_the_run_goes_on_digit_for_digit(folder, two_ranks, stage, model):
    # Evaluation stands between the steps, on shards of a size that the ranks cannot share evenly.
    data = {"evaluation": str(tiny_shards(folder / "evaluation", samples=7))}
    whole, stopped = (
        recipe(folder, f"{run}-{stage}", stage, model, data, save_steps=100, eval_steps=2)
        for run in ("whole", "stopped")
    )
    assert two_ranks.run(run_trainer, whole) == ["finished", "finished"]
    assert two_ranks.run(run_trainer, stopped, 1) == ["stopped", "stopped"]
    assert [path.name for path in (folder / f"stopped-{stage}" / "checkpoints").iterdir()] == ["step-00000001"]
    assert two_ranks.run(run_trainer, stopped) == ["finished", "finished"]
    assert metrics(folder, f"stopped-{stage}") == metrics(folder, f"whole-{stage}")
    assert metrics(folder, f"whole-{stage}").count('"evaluation/query_to_target/fused/recall@1":') == 2


CHUNKED = {
    "zero1": {"gradient_accumulation_steps": 2},
    "zero2": {"chunk_paths": 1, "gradient_reduction": "chunk"},
    "zero3": {"chunk_tokens": 60},
}


@pytest.mark.parametrize("stage", list(CHUNKED))
def test_bf16_in_chunks_resumes_digit_for_digit_too(folder, two_ranks, stage):
    whole, stopped = (
        recipe(folder, f"{run}-bf16-{stage}", stage, bf16=True, **CHUNKED[stage]) for run in ("whole", "stopped")
    )
    assert two_ranks.run(run_trainer, whole) == ["finished", "finished"]
    assert two_ranks.run(run_trainer, stopped, 0) == ["stopped", "stopped"]
    assert two_ranks.run(run_trainer, stopped) == ["finished", "finished"]
    assert metrics(folder, f"stopped-bf16-{stage}") == metrics(folder, f"whole-bf16-{stage}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"paths": 3}}, "embedder.paths is 2 there and 3 in this run"),
        ({"model": {"lora": LORA | {"r": 3}}}, "lora.r is 2 there and 3 in this run"),
        (
            {"stage": "zero3"},
            "was saved by 2 ranks under ZeRO-2, and this run has 2 ranks under ZeRO-3; set train.resume_elastic=true",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_one_rank_in_one_sentence_and_the_others_leave(
    folder, two_ranks, change, sentence
):
    if not (folder / "base").exists():
        two_ranks.run(run_trainer, recipe(folder, "base", max_steps=1))
    told, other = two_ranks.run(run_trainer, recipe(folder, "base", **change))
    assert sentence in told
    assert "\n" not in told
    assert other == "exit code 2"


def test_a_data_folder_that_changed_since_the_checkpoint_is_refused(folder, two_ranks):
    two_ranks.run(run_trainer, recipe(folder, "moved", max_steps=1))
    other = tiny_shards(folder / "other", samples=20)
    told, _ = two_ranks.run(run_trainer, recipe(folder, "moved", data={"train": str(other)}))
    assert f"The data folder {other} changed since the checkpoint" in told


def test_corrupt_samples_are_counted_and_past_the_share_all_ranks_stop(folder, two_ranks):
    shards = folder / "corrupt"
    shutil.copytree(tiny_shards(folder / "data"), shards)
    damage(shards / "00000.tar", 6)
    sets = [str(shards), {"path": str(tiny_shards(folder / "data")), "name": "whole", "max_samples": 8}]
    forgiving = recipe(
        folder, "forgiving", data={"train": sets, "max_corrupt_share": 1.0, "sub_batch_pairs": 2}, max_steps=9
    )
    assert two_ranks.run(run_trainer, forgiving) == ["finished", "finished"]
    # An epoch is 24 + 8 samples, eight steps of 4; the report at its end and the one at the run's end.
    epoch, end = map(json.loads, (folder / "forgiving" / "coverage.jsonl").read_text().splitlines())
    assert (epoch["step"], epoch["epoch"], end["step"], end["samples"]) == (8, 1.0, 9, 36)
    whole = {"samples": 24, "seen": 8, "unique": 8, "repeated": 0, "used": 8, "unusable": {}, "not_yet_seen": 16}
    corrupt = {
        "samples": 24,
        "seen": 24,
        "unique": 24,
        "repeated": 0,
        "used": 22,
        "unusable": {"damaged": 2},
        "not_yet_seen": 0,
    }
    assert epoch["data_sets"] == {"corrupt": corrupt, "whole": whole}
    assert sum(counts["seen"] for counts in end["data_sets"].values()) == 36
    assert end["corrupt"] == sum(end["data_sets"]["corrupt"]["unusable"].values())
    told, other = two_ranks.run(
        run_trainer, recipe(folder, "strict", data={"train": str(shards), "max_corrupt_share": 0.0})
    )
    assert "could not be used" in told
    assert other == "exit code 2"


def damage(tar: Path, count: int) -> None:
    """Overwrite the first braces of a tar of JSON members; sizes stay."""
    data = bytearray(tar.read_bytes())
    place = 0
    for _ in range(count):
        place = data.find(b"{", place)
        data[place : place + 2] = b"\xff\xff"
    tar.write_bytes(data)


def test_inputs_over_the_token_budget_and_the_way_gradients_are_reduced_are_told_once(folder, two_ranks):
    told, silent = two_ranks.run(what_a_run_tells, recipe(folder, "oversized", chunk_tokens=1))
    assert told.count("inputs hold more tokens than train.chunk_tokens allows") == 1
    assert told.count("Gradients are summed over ranks once per step: whole, they take 0.00 GiB") == 1
    timings = [json.loads(line) for line in (folder / "oversized" / "timings.jsonl").read_text().splitlines()]
    phases = ("embed", "objective", "backward", "reduce", "optimiser")
    assert all(0 < sum(timing[f"{phase}_seconds"] for phase in phases) <= timing["seconds"] for timing in timings)
    # What a CPU can do at most depends on who else is busy, so no share of it is shown.
    assert "MFU" not in told and not any("mfu" in timing for timing in timings)
    assert [line.split()[1] for line in told.splitlines() if line.startswith("step ") and "loss" in line] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]
    assert "Finished after step 4" in told
    assert silent == ""


def what_a_run_tells(config: Config) -> str:
    """In a rank: what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_trainer(config)
    return printed.getvalue()


def test_dropout_in_the_second_embedding_of_a_chunk_repeats_the_first_exactly(folder, two_ranks):
    assert all(two_ranks.run(embed_twice, recipe(folder, "dropout", gradient_accumulation_steps=2)))


def embed_twice(config: Config) -> bool:
    """In a rank: chunk 1 of step 1 without and with a graph, after chunk 0 in between; and in step 2, where it must
    differ."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    passes, embed = trainer.stepper.passes(next(trainer.loader)), trainer.stepper.embed
    # Adapters start as zero, where dropout changes nothing.
    with torch.no_grad():
        for name, parameter in trainer.engine.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    first = embed(passes[1], 1, with_graph=False).paths
    embed(passes[0], 1, with_graph=False)
    second, later = embed(passes[1], 1, with_graph=True).paths, embed(passes[1], 2, with_graph=False).paths
    trainer.close()
    trainer.engine.destroy()
    return second.requires_grad and torch.equal(first, second) and not torch.equal(first, later)
