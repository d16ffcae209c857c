import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_exports import HIDDEN, PATHS, tiny_export
from tiny_models import items

from pdfx.cli.app import main
from pdfx.embedder.exports import load_export
from pdfx.errors import UserError
from pdfx.evaluate.embed import EmbedJob, embed_file, merge_parts, write_part

COUNT = 11
ROUNDING = 1e-5  # the same float32 computation in batches of another size; the last sums may be ordered differently


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """A JSONL file of texts, pictures and both, with a character that splits lines elsewhere, and its pictures beside
    it."""
    folder = tmp_path_factory.mktemp("input")
    records = []
    for i, item in enumerate(items("mixed", COUNT)):
        names = [f"{i}-{j}.png" for j in range(len(item["images"]))]
        for name, image in zip(names, item["images"], strict=True):
            image.save(folder / name)
        records.append({"text": item["text"] + "\u2028", "images": names})
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def job(export, lines, tmp_path) -> EmbedJob:
    return EmbedJob(export, lines, tmp_path / "out.npy", batch_size=4)


@pytest.fixture(scope="module")
def expected(export):
    model = load_export(export)
    loaded = [{**item, "text": item["text"] + "\u2028"} for item in items("mixed", COUNT)]
    return {side: model.embed(loaded, side) for side in ("query", "target")}


def left_behind(job: EmbedJob) -> list[str]:
    return sorted(path.name for path in job.out.parent.iterdir() if path != job.out)


@pytest.mark.parametrize("side", ["query", "target"])
def test_every_line_gets_the_embedding_of_the_model_for_its_side(job, expected, side):
    shape = embed_file(replace(job, side=side))
    embeddings = np.load(job.out)
    assert shape == embeddings.shape == (COUNT, PATHS, HIDDEN)
    assert embeddings.dtype == np.float32
    assert np.allclose(embeddings, expected[side].paths, atol=ROUNDING)
    assert left_behind(job) == []


def test_the_sides_have_instructions_of_their_own(expected):
    assert not np.allclose(expected["query"].paths, expected["target"].paths, atol=100 * ROUNDING)


@pytest.mark.parametrize("paths", ["all", "fused", "0", "2"])
def test_the_chosen_paths_are_written_to_safetensors(job, expected, paths):
    out = job.out.with_suffix(".safetensors")
    embed_file(replace(job, out=out, paths=paths))
    wanted = {"all": expected["query"].paths, "fused": expected["query"].fused}.get(paths)
    wanted = expected["query"].paths[:, int(paths)] if wanted is None else wanted
    tensors = load_file(out)
    assert list(tensors) == ["embeddings"]
    assert torch.allclose(tensors["embeddings"], wanted, atol=ROUNDING)


def test_truncated_embeddings_are_leading_dimensions_of_unit_length(job, expected):
    embed_file(replace(job, paths="fused", truncate_dim=8))
    wanted = torch.nn.functional.normalize(expected["query"].fused[:, :8], dim=-1)
    assert np.allclose(np.load(job.out), wanted, atol=ROUNDING)


@pytest.mark.process
def test_two_processes_write_what_one_does(job):
    embed_file(job)
    alone = np.load(job.out)
    seen = []
    embed_file(job, processes=2, on_progress=lambda done, total: seen.append((done, total)))
    assert np.allclose(np.load(job.out), alone, atol=ROUNDING)
    assert seen[-1] == (COUNT, COUNT)
    assert left_behind(job) == []


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_parts_of_any_number_of_ranks_some_of_them_idle_join_to_the_whole(job, tmp_path, world_size):
    embed_file(job)
    alone = np.load(job.out)
    for rank in reversed(range(world_size)):
        write_part(job, tmp_path, rank, world_size, torch.device("cpu"))
    assert merge_parts(job, tmp_path, world_size) == alone.shape
    assert np.array_equal(np.load(job.out), alone)


@pytest.mark.process
def test_two_ranks_of_torchrun_write_what_one_process_does(job):
    embed_file(job)
    alone = np.load(job.out)
    job.out.unlink()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pdfx"]
    command = [*launch, "embed", str(job.model), str(job.input), "--out", str(job.out), "--batch-size", "4"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{job.out}: {COUNT} x {PATHS} x {HIDDEN}"]
    assert np.allclose(np.load(job.out), alone, atol=ROUNDING)
    assert left_behind(job) == []


def broken_line(job: EmbedJob, line: str) -> EmbedJob:
    path = job.out.with_name("broken.jsonl")
    good = json.dumps({"text": "a red square"})
    path.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    return replace(job, input=path, images=job.input.parent)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"images": ["../items.jsonl"]}', "leaves the image folder"),
        ('{"text": "a"', "not valid JSON"),
        ("", "not valid JSON"),
        ('["a"]', "object"),
        ('{"txt": "a"}', "unknown key 'txt'; did you mean 'text'"),
        ('{"text": 3}', "'text' is 3"),
        ('{"text": "a", "images": "a.png"}', "images"),
        ("{}", "neither a text nor an image"),
        ('{"images": ["absent.png"]}', "there is no image .*absent.png"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(job, line, message):
    wrong = broken_line(job, line)
    with pytest.raises(UserError, match=f"broken.jsonl line 2: .*{message}"):
        embed_file(wrong)
    assert not job.out.exists()
    assert left_behind(job) == ["broken.jsonl"]


@pytest.mark.process
@pytest.mark.parametrize("processes", [1, 2])
def test_a_corrupt_image_is_named_with_its_line_and_nothing_is_written(job, processes):
    truncated = job.out.with_name("truncated.png")
    truncated.write_bytes((job.input.parent / "1-0.png").read_bytes()[:60])
    wrong = replace(broken_line(job, json.dumps({"images": ["truncated.png"]})), images=None)
    with pytest.raises(UserError, match="broken.jsonl line 2: the image .*truncated.png cannot be used"):
        embed_file(wrong, processes)
    assert not job.out.exists()
    assert left_behind(job) == ["broken.jsonl", "truncated.png"]


def test_a_picture_that_the_processor_refuses_is_named_with_its_line(job, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("thin")
    Image.new("RGB", (300, 1)).save(folder / "thin.png")
    (folder / "thin.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c", "images": ["thin.png"]}\n')
    export = tiny_export(folder, "qwen2_vl")
    with pytest.raises(SystemExit) as ended:
        main(["embed", str(export), str(folder / "thin.jsonl"), "--out", str(job.out), "--batch-size", "2"])
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "Traceback" not in told
    assert (
        f"thin.jsonl line 3: the item with the image {folder / 'thin.png'} cannot be embedded: absolute aspect ratio "
        "must be smaller than 200" in told
    )
    assert left_behind(job) == []


@pytest.mark.process
@pytest.mark.parametrize("processes", [1, 2])
def test_texts_that_were_cut_are_counted_and_their_first_lines_named(job, capsys, processes):
    path = job.out.with_name("long.jsonl")
    path.write_text("".join(json.dumps({"text": "red green blue " * (1000 if i % 2 else 1)}) + "\n" for i in range(14)))
    embed_file(replace(job, input=path), processes)
    assert capsys.readouterr().err.strip() == (
        "7 of 14 texts are longer than the model's max_text_tokens (512) and were cut there: lines 2, 4, 6, 8, 10 "
        "and 2 more."
    )


def test_runs_with_one_output_do_not_mix_their_rows_and_clear_up_after_a_killed_one(job):
    others = job.out.with_name("others.jsonl")
    others.write_text("".join(json.dumps({"text": f"other {i}"}) + "\n" for i in range(COUNT)))
    other = replace(job, input=others)
    wanted = []
    for one in (job, other):
        embed_file(one)
        wanted.append(np.load(job.out))
    # What a killed run leaves: a folder whose lock nobody holds.
    killed = job.out.with_name(f".{job.out.name}.killed.draft")
    killed.mkdir()
    (killed / "lock").touch()

    def run_the_other(done: int, total: int) -> None:
        if done == total:
            embed_file(other)

    embed_file(job, on_progress=run_the_other)
    assert np.array_equal(np.load(job.out), wanted[0])
    embed_file(other, on_progress=lambda done, total: embed_file(job) if done == total else None)
    assert np.array_equal(np.load(job.out), wanted[1])
    assert left_behind(job) == ["others.jsonl"]


def test_an_empty_input_is_refused(job):
    path = job.out.with_name("empty.jsonl")
    path.write_text("")
    with pytest.raises(UserError, match="nothing to embed"):
        embed_file(replace(job, input=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": Path("embeddings.csv")}, "must end in .safetensors or .npy"),
        ({"out": Path("absent/embeddings.npy")}, "no folder absent"),
        ({"paths": "first"}, "must be 'all', 'fused', or the number"),
        ({"paths": "3"}, "has the paths 0 to 2"),
        ({"truncate_dim": 33}, "have 32 dimensions"),
        ({"input": Path("absent.jsonl")}, "no input file absent.jsonl"),
        ({"model": Path("absent")}, "no directory absent"),
    ],
)
def test_a_wrong_setting_is_told_in_one_sentence(job, change, message):
    with pytest.raises(UserError, match=message):
        embed_file(replace(job, **change))


def test_a_failed_run_keeps_an_older_output(job):
    job.out.write_bytes(b"older")
    with pytest.raises(UserError):
        embed_file(broken_line(job, "{}"))
    assert job.out.read_bytes() == b"older"


def test_directories_that_are_no_export_are_refused(export, tmp_path):
    with pytest.raises(UserError, match="holds no config.json"):
        load_export(tmp_path)
    with pytest.raises(UserError, match="model type 'llava_next'"):
        load_export(export.parent / "backbone")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read: Expecting property name"):
        load_export(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [("missing", "cannot be loaded"), ("truncated", "model.safetensors is not a safetensors file, or is damaged")],
)
def test_an_export_without_its_whole_weights_is_refused(export, tmp_path, damage, sentence):
    for path in export.iterdir():
        if path.is_file() and not (damage == "missing" and path.name == "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage == "truncated":
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=sentence):
        load_export(tmp_path)
