"""A real two-rank ZeRO-3 LoRA run, converted; and what the converter refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from make_model import make_model
from safetensors.torch import load_file, save_file
from tiny_models import items, tiny_backbone
from tiny_shards import make_shards

from pdfx.build import build_embedder
from pdfx.config import parse_config
from pdfx.convert import chosen_checkpoint, convert, read_run_config, trained_embedder, verify_export, write_export
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder
from pdfx.train.checkpoint import DEEPSPEED_CLASSES, Checkpoint

ROOT = Path(__file__).parents[2]


def recipe(backbone: Path, shards: Path, output: Path) -> dict:
    return {
        "model": {"path": str(backbone), "paths": 3, "prefix": {"length": 4, "learning_rate": 0.1}, "matryoshka_dims": [8], "fusion": "softmax"},
        "inputs": {"query_instruction": "find: "},
        "data": {"train": str(shards), "num_workers": 0},
        "objective": {"mutual_information": {"warmup_steps": 0}, "learn_temperature": True},
        "train": {
            "output_dir": str(output),
            "deepspeed": str(ROOT / "ds_configs/zero3.json"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "warmup_steps": 0,
            "bf16": False,
            "save_steps": 2,
            "tensorboard": False,
        },
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted-run")
    settings = recipe(tiny_backbone("qwen2_vl", folder / "backbone"), make_shards(folder / "data", samples=16), folder / "run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "29741"]
    done = subprocess.run([*launcher, "launch/train.py", str(folder / "recipe.yaml")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def export(run) -> Path:
    return convert(run, run.parent / "export")


def test_the_export_gives_the_trainers_embeddings_in_a_process_that_cannot_import_pdfx(run, export):
    worst = verify_export(export, chosen_checkpoint(run, None).path / "probe")
    assert 0 <= worst < 1e-4


def test_the_exported_weights_are_the_trained_ones_with_lora_merged(run, export):
    embedder = trained_embedder(read_run_config(run), chosen_checkpoint(run, 2))
    fresh = build_embedder(read_run_config(run))
    batch = items("mixed", 4)
    trained = embedder.embed(batch)
    # Training moved the weights by far more than the tolerance below.
    assert (trained.paths - fresh.embed(batch).paths).abs().max() > 0.01
    exported = ParallelEmbedder.from_pretrained(export)
    assert not any("lora" in name for name, _ in exported.named_parameters())
    for name in ("paths", "fused"):
        torch.testing.assert_close(exported.embed(batch)[name], trained[name], atol=1e-5, rtol=0)


def test_the_export_is_complete_and_describes_itself(export):
    names = {path.name for path in export.iterdir()}
    assert {"config.json", "model.safetensors", "modeling.py", "processing.py", "processor_config.json", "tokenizer.json", "README.md"} <= names
    assert json.loads((export / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling.ParallelEmbedder"
    assert json.loads((export / "pdfx_export.json").read_text())["step"] == 2
    card = (export / "README.md").read_text()
    assert "**3** unit embeddings of dimension 32" in card and "trust_remote_code=True" in card


def test_one_tampered_prefix_tensor_makes_the_check_fail(run, export, tmp_path):
    tampered = tmp_path / "tampered"
    shutil.copytree(export, tampered)
    weights = load_file(tampered / "model.safetensors")
    name = next(name for name in weights if name.endswith("prefix.value"))
    weights[name][1] += 0.5
    save_file(weights, tampered / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="embeddings differ from the trainer's"):
        verify_export(tampered, chosen_checkpoint(run, None).path / "probe")


def test_a_prefix_tampered_in_a_shard_stops_the_conversion_and_leaves_nothing(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shard = next((chosen_checkpoint(copy, None).path / "zero").glob("*rank_0*optim_states.pt"))
    with torch.serialization.safe_globals(DEEPSPEED_CLASSES):
        content = torch.load(shard, weights_only=True)
    # The first group is that of the prefixes.
    content["optimizer_state_dict"]["fp32_flat_groups"][0].data.add_(0.5)
    torch.save(content, shard)
    size = shard.stat().st_size
    manifest = chosen_manifest(copy)
    manifest["files"][f"zero/{shard.name}"] = size
    (copy / "checkpoints/step-00000002/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="embeddings differ from the trainer's"):
        convert(copy, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def chosen_manifest(run: Path) -> dict:
    return json.loads((run / "checkpoints/step-00000002/manifest.json").read_text())


def test_bf16_exports_stay_near_the_trainer(run, tmp_path):
    export = convert(run, tmp_path / "export", dtype="bfloat16")
    assert {weight.dtype for weight in load_file(export / "model.safetensors").values()} == {torch.bfloat16}


def test_a_missing_shard_a_used_directory_and_a_folder_that_is_no_run_are_told_in_a_sentence(run, export, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    next((copy / "checkpoints/step-00000002/zero").glob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(UserError, match="no whole checkpoint.*rank_1.*is missing"):
        convert(copy, tmp_path / "export")
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(run, export)
    with pytest.raises(UserError, match="no run directory"):
        convert(tmp_path, tmp_path / "export")
    with pytest.raises(UserError, match="step-00000007 is no whole checkpoint"):
        convert(run, tmp_path / "export", checkpoint=7)


def test_a_checkpoint_of_another_configuration_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    tree["model"]["prefix"]["length"] = 6
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="wrongly shaped"):
        convert(copy, tmp_path / "export")


LOAD_IN_PDFX = """
import sys
from pdfx.model import ParallelEmbedder
try:
    ParallelEmbedder.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
model = ParallelEmbedder.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.embed([{"text": "a cat"}]).paths.shape)
"""


def test_a_backbones_own_modules_travel_and_run_only_where_remote_code_is_trusted(tmp_path):
    make_model(tmp_path / "backbone")
    settings = recipe(tmp_path / "backbone", tmp_path, tmp_path / "run")
    settings["model"] |= {"modules": [str(ROOT / "launch/quickstart/efficientnet_lite.py")], "matryoshka_dims": [], "lora": None}
    config = parse_config(settings)
    embedder = build_embedder(config).eval()
    export, probe = tmp_path / "export", tmp_path / "probe"
    write_export(embedder, export, config, Checkpoint(tmp_path, 0))
    write_probe(embedder, probe)
    assert verify_export(export, probe) < 1e-4
    printed = subprocess.run([sys.executable, "-c", LOAD_IN_PDFX, str(export)], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "brings code of its own (efficientnet_lite.py)" in printed[0]
    assert printed[1] == "torch.Size([1, 3, 256])"


def write_probe(embedder: ParallelEmbedder, probe: Path) -> None:
    """The probe that a trainer would have left."""
    probe.mkdir()
    batch = items("image", 2)
    for number, item in enumerate(batch):
        item["images"][0].save(probe / f"{number}.png")
    entries = [{"side": "query", "text": item["text"], "images": [f"{number}.png"]} for number, item in enumerate(batch)]
    (probe / "items.json").write_text(json.dumps(entries))
    output = embedder.embed(batch)
    save_file({name: output[name].contiguous() for name in ("paths", "fused")}, probe / "embeddings.safetensors")
