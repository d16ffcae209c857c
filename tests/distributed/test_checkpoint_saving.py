"""Checkpoints on two real ranks: written in the background without harm, kept as the recipe says, and damaged ones
passed over."""

import contextlib
import io
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint.made import flip
from tiny_runs import hook_of, tiny_config, tiny_shards

from pdfx.checkpoint.directory import PARAMETERS, newest_whole, open_checkpoint
from pdfx.checkpoint.parameters import SavedParameters
from pdfx.config import Config
from pdfx.config.run_files import MANIFEST

LORA = {"r": 2, "alpha": 4, "dropout": 0.3, "targets": ["q_proj"]}


def recipe(folder: Path, run: str, data: dict | None = None, **train) -> Config:
    train = {"max_steps": 5, "save_steps": 1, "save_total_limit": 5, "output_dir": str(folder / run)} | train
    return tiny_config(folder, "qwen2_vl", "zero3", model={"lora": LORA}, data=data or {}, train=train)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("saving")


def run_telling(config: Config) -> str:
    """In a rank: the whole run; what it told, or the sentence that ended it."""
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import StopRequest, Trainer

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        trainer = None
        try:
            trainer = Trainer(config, join_world())
            trainer.run(StopRequest())
        except UserError as error:
            return str(error)
        except SystemExit as error:
            return f"exit code {error.code}"
        finally:
            if trainer is not None:
                trainer.close()
                trainer.engine.destroy()
    return printed.getvalue()


def steps(run: Path, suffix: str = "") -> list[int]:
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").iterdir())
    return sorted(
        int(name.removesuffix(suffix))
        for name in names
        if name.removesuffix(suffix).isdecimal() and name.endswith(suffix)
    )


def test_flipped_truncated_and_missing_files_are_named_and_passed_over_for_the_one_before(folder, two_ranks):
    told, _ = two_ranks.run(run_telling, recipe(folder, "damaged"))
    assert told.count("Saved ") == 5
    run = folder / "damaged"
    before = (run / "metrics.jsonl").read_text()
    own = {step: run / f"checkpoints/step-{step:08d}" for step in range(1, 6)}
    flip(own[5] / PARAMETERS / "rank-00001-of-00002.safetensors", place=-1000)
    os.truncate(own[4] / PARAMETERS / "rank-00000-of-00002.safetensors", 1000)
    (own[3] / PARAMETERS / "rank-00001-of-00002.safetensors").unlink()
    flip(own[2] / MANIFEST, (own[2] / MANIFEST).read_text().index('"step": 2') + len('"step": '))
    told, _ = two_ranks.run(run_telling, recipe(folder, "damaged"))
    sentences = " ".join(told.split())
    assert (
        f"Passed over: {own[5]} is not a whole checkpoint: parameters/rank-00001-of-00002.safetensors is damaged"
        in sentences
    )
    assert (
        f"Passed over: {own[4]} is not a whole checkpoint: parameters/rank-00000-of-00002.safetensors has 1000 bytes "
        "instead of" in sentences
    )
    assert (
        f"Passed over: {own[3]} is not a whole checkpoint: parameters/rank-00001-of-00002.safetensors is missing"
        in sentences
    )
    assert f"Passed over: {own[2]} is not a whole checkpoint: manifest.json is damaged" in sentences
    assert f"Going on from {own[1]} after step 1." in sentences
    # It trained steps 2 to 5 again, and put whole checkpoints in the damaged ones' places.
    assert (run / "metrics.jsonl").read_text() == before
    assert steps(run) == [1, 2, 3, 4, 5]
    assert newest_whole(run)[0].step == 5 and not newest_whole(run)[1]


def test_a_checkpoint_that_is_named_must_be_whole(folder, two_ranks):
    if not (folder / "damaged").exists():
        two_ranks.run(run_telling, recipe(folder, "damaged"))
    copy = folder / "copy"
    shutil.copytree(newest_whole(folder / "damaged")[0].path, copy)
    flip(copy / PARAMETERS / "rank-00000-of-00002.safetensors")
    told, other = two_ranks.run(run_telling, recipe(folder, "other", resume=str(copy)))
    assert (
        told
        == f"{copy} is not a whole checkpoint: parameters/rank-00000-of-00002.safetensors is damaged: its content does "
        "not match its checksum."
    )
    assert other == "exit code 2"


def test_where_no_checkpoint_can_be_taken_up_no_new_run_takes_the_place_of_the_old_one(folder, two_ranks):
    two_ranks.run(run_telling, recipe(folder, "lost", max_steps=2))
    run = folder / "lost"
    before = (run / "metrics.jsonl").read_text()
    for path in (run / "checkpoints").iterdir():
        flip(path / "state/objective.pt")
    told, other = two_ranks.run(run_telling, recipe(folder, "lost", max_steps=2))
    assert told.startswith(f"None of the 2 checkpoints in {run} can be resumed")
    assert "step-00000002 is not a whole checkpoint: state/objective.pt is damaged" in told
    assert other == "exit code 2"
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_started_from_a_named_checkpoint_goes_on_from_its_own_when_the_same_command_is_given_again(
    folder, two_ranks
):
    # The number of steps changes, and must not change the learning rate.
    run, constant = folder / "named", {"lr_scheduler_type": "constant"}
    two_ranks.run(run_telling, recipe(folder, "named", **constant))
    before = (run / "metrics.jsonl").read_text()
    start = run / "checkpoints/step-00000002"
    told, _ = two_ranks.run(run_telling, recipe(folder, "named", resume=str(start), max_steps=4, **constant))
    assert f"Going on from {start} after step 2." in " ".join(told.split())
    assert steps(run, ".aside") == [3, 4, 5]
    told, _ = two_ranks.run(run_telling, recipe(folder, "named", resume=str(start), **constant))
    assert f"Going on from {run}/checkpoints/step-00000004 after step 4." in " ".join(told.split())
    assert (steps(run), steps(run, ".aside")) == ([1, 2, 3, 4, 5], [3, 4, 5])
    assert (run / "metrics.jsonl").read_text() == before


def save_while_training(config: Config, harm: bool) -> tuple[list[bool], str]:
    """In a rank: begin to save after step 1, train step 2 while the files are held up, and let them be written then.

    ``harm`` takes the directory away that they should be written to. Returns whether the write was on its way, and how
    the end of the save was told.
    """
    from pdfx.checkpoint import saver
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import Trainer

    trainer, released, write_parts = Trainer(config, join_world()), threading.Event(), saver.write_parts

    def held_up(*arguments):
        assert released.wait(60)
        return write_parts(*arguments)

    saver.write_parts = held_up
    try:
        trainer.train_step()
        hook_of(trainer, "Saving").save(trainer)
        trainer.train_step()
        job = trainer.saver.current.job
        running = [not job.done(), trainer.saver.advance() == [], not job.done()]
        dist.barrier()
        if harm and dist.get_rank() == 1:
            (trainer.saver.partial(1) / PARAMETERS).rmdir()
        dist.barrier()
        released.set()
        return running, " ".join(trainer.saver.finish())
    except UserError as error:
        return running, str(error)
    except SystemExit as error:
        return running, f"exit code {error.code}"
    finally:
        saver.write_parts = write_parts
        trainer.close()
        trainer.engine.destroy()


def test_what_is_written_while_training_goes_on_is_the_state_of_its_step_bit_for_bit(folder, two_ranks):
    (running, told), _ = two_ranks.run(
        save_while_training, recipe(folder, "background", save_in_background=True), False
    )
    assert all(running) and told.startswith(
        f"Saved {folder / 'background/checkpoints/step-00000001'}; training waited for"
    )
    two_ranks.run(run_telling, recipe(folder, "blocking", save_in_background=False, max_steps=5, save_total_limit=9))
    one, other = (folder / f"{run}/checkpoints/step-00000001" for run in ("background", "blocking"))
    saved = [SavedParameters(open_checkpoint(path).files(PARAMETERS)) for path in (one, other)]
    assert saved[0].shapes == saved[1].shapes
    for name in saved[0].shapes:
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            assert torch.equal(*(parameters.read(kind, name) for parameters in saved)), (kind, name)
    for name in ("state/trainer.json", "state/buffers.safetensors", "probe/embeddings.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_background_write_that_fails_ends_all_ranks_with_its_reason_and_leaves_no_checkpoint(folder, two_ranks):
    (running, told), (_, other) = two_ranks.run(
        save_while_training, recipe(folder, "failing", save_in_background=True), True
    )
    assert all(running)
    assert told.startswith(
        f"The checkpoint {folder / 'failing/checkpoints/step-00000001'} could not be written: No such file or directory"
    )
    assert other == "exit code 2"
    assert newest_whole(folder / "failing") == (None, [])
    # The next run clears away what is left, and saves.
    told, _ = two_ranks.run(run_telling, recipe(folder, "failing", max_steps=1))
    assert "Starting a new run." in told and steps(folder / "failing") == [1]


def fail_while_saving(config: Config, alone: bool) -> None:
    """In a rank: save in the background and fail in the next step. ``alone``: only rank 1 comes to the end of the
    run."""
    from datetime import timedelta

    from pdfx.checkpoint import saver
    from pdfx.distributed.world import join_world
    from pdfx.errors import UserError
    from pdfx.train.trainer import Trainer

    trainer = Trainer(config, join_world())
    trainer.train_step()
    hook_of(trainer, "Saving").save(trainer)
    with torch.no_grad():
        next(parameter for name, parameter in trainer.engine.module.named_parameters() if "prefix" in name).fill_(
            float("nan")
        )
    with contextlib.suppress(UserError, SystemExit):
        trainer.train_step()
    saver.PATIENCE = timedelta(seconds=2 if alone else 60)
    if not alone or dist.get_rank() == 1:
        trainer.saver.rescue()
    trainer.close()
    trainer.engine.destroy()


def test_an_error_that_all_ranks_share_does_not_lose_the_checkpoint_on_its_way(folder, two_ranks):
    two_ranks.run(fail_while_saving, recipe(folder, "rescued", save_in_background=True), False)
    assert newest_whole(folder / "rescued")[0].step == 1


def test_a_rank_that_fails_alone_does_not_wait_for_the_others(folder, two_ranks):
    two_ranks.run(fail_while_saving, recipe(folder, "alone", save_in_background=True), True, timeout=60)
    assert newest_whole(folder / "alone") == (None, [])


def test_the_newest_the_best_and_every_so_many_steps_one_stay(folder, two_ranks):
    name = "target_to_query/fused/mrr"
    data = {"evaluation": str(tiny_shards(folder / "evaluation", samples=7))}
    rule = {"save_total_limit": 1, "keep_steps": 2, "metric_for_best_model": name, "eval_steps": 1}
    two_ranks.run(run_telling, recipe(folder, "kept", data, **rule))
    records = [json.loads(line) for line in (folder / "kept/metrics.jsonl").read_text().splitlines()]
    scores = {record["step"]: record[f"evaluation/{name}"] for record in records if f"evaluation/{name}" in record}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert list(scores) == [1, 2, 3, 4, 5]
    assert steps(folder / "kept") == sorted({best, 2, 4, 5})


def test_a_metric_that_no_evaluation_gives_is_refused_at_the_start_with_the_nearest(folder, two_ranks):
    data = {"evaluation": str(tiny_shards(folder / "evaluation", samples=7))}
    told, other = two_ranks.run(
        run_telling, recipe(folder, "misnamed", data, eval_steps=1, metric_for_best_model="query_to_target/fused/mr")
    )
    assert (
        told == "train.metric_for_best_model is 'query_to_target/fused/mr', which no evaluation gives; did you mean "
        "'query_to_target/fused/mrr'?"
    )
    assert other == "exit code 2"
