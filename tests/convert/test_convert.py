"""A real two-rank ZeRO-3 LoRA run, converted; and what the converter refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
import yaml
from make_model import make_model
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import items, tiny_backbone
from tiny_shards import make_shards
from transformers import AutoModel

from pdfx.checkpoint.directory import PARAMETERS, Checkpoint, newest_whole
from pdfx.checkpoint.manifest import Manifest, read_manifest, write_manifest
from pdfx.checkpoint.parameters import SavedParameters
from pdfx.config import Config, parse_config
from pdfx.convert import convert
from pdfx.convert.check import verify_export
from pdfx.convert.conversion import read_run_config
from pdfx.convert.documents import write_documents
from pdfx.convert.weights import narrowed
from pdfx.embedder.build import build_embedder, build_on_meta
from pdfx.embedder.exports import files_of, load_export
from pdfx.errors import UserError
from pdfx.host.files import FileRecord, read_record
from pdfx.model import ParallelEmbedder

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def recipe(backbone: Path, shards: Path, output: Path) -> dict:
    return {
        "model": {
            "path": str(backbone),
            "paths": 3,
            "prefix": {"length": 4, "learning_rate": 0.1},
            "matryoshka_dims": [8],
            "fusion": "routed",
        },
        "inputs": {"query_instruction": "find: "},
        "data": {"train": str(shards), "num_workers": 0},
        "objective": {"learn_temperature": True},
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


def train(config: Config) -> None:
    """In a rank."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    assert trainer.run(StopRequest())
    trainer.close()
    trainer.engine.destroy()


@pytest.fixture(scope="module")
def run(tmp_path_factory, two_ranks) -> Path:
    folder = tmp_path_factory.mktemp("converted-run")
    # Relative to the folder that the run is started in.
    backbone = Path(os.path.relpath(tiny_backbone("qwen2_vl", folder / "backbone")))
    settings = recipe(backbone, make_shards(folder / "data", samples=16), folder / "run")
    two_ranks.run(train, parse_config(settings))
    return folder / "run"


@pytest.fixture(scope="module")
def said(run) -> list[str]:
    """What the conversion to ``export`` tells."""
    return []


@pytest.fixture(scope="module")
def export(run, said) -> Path:
    return convert(run, run.parent / "export", say=said.append)


def test_the_export_gives_the_trainers_embeddings_in_a_process_that_cannot_import_pdfx(run, export, said):
    worst = verify_export(export, newest_whole(run)[0].path / "probe")
    assert 0 <= worst < 1e-4
    assert (
        len(said) == 1 and f"as the trainer did; largest difference of an entry {worst:.1e}, allowed 0.0001." in said[0]
    )


def trained_embedder(run: Path) -> ParallelEmbedder:
    """The recipe's embedder as a whole with all trained parameters put in, in the plainest way."""
    embedder = build_embedder(read_run_config(run)).eval()
    saved = SavedParameters(newest_whole(run)[0].files(PARAMETERS))
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved.read("master", f"embedder.{name}").view(parameter.shape))
    return embedder


def test_the_exported_weights_are_the_trained_ones_with_lora_merged(run, export):
    embedder = trained_embedder(run)
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
    assert {
        "config.json",
        "model.safetensors",
        "modeling.py",
        "processing.py",
        "processor_config.json",
        "tokenizer.json",
        "README.md",
    } <= names
    assert json.loads((export / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling.ParallelEmbedder"
    record = json.loads((export / "pdfx_export.json").read_text())
    assert record["step"] == 2
    assert {name: FileRecord(**entry) for name, entry in record["files"].items()} == {
        name: read_record(export / name) for name in files_of(export)
    }
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
        verify_export(tampered, newest_whole(run)[0].path / "probe")


def test_a_check_that_was_killed_names_the_signal_and_what_to_do(tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text(
        json.dumps(
            {"model_type": "killed", "auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}}
        )
    )
    (export / "modeling.py").write_text("import os\nimport signal\n\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(
        UserError, match="was ended by SIGKILL, most often because memory ran out; free some, or --skip-check"
    ):
        verify_export(export, tmp_path / "probe")


def test_a_prefix_tampered_in_a_shard_stops_the_conversion_and_leaves_nothing(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = newest_whole(copy)[0].path
    file = next((checkpoint / PARAMETERS).glob("rank-00000-*"))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    next(weight for name, weight in weights.items() if name.startswith("master/") and "prefix" in name).add_(0.5)
    save_file(weights, file, metadata)
    # With a manifest that agrees, so that only the embeddings can tell.
    manifest = read_manifest(checkpoint)
    write_manifest(
        checkpoint, Manifest(manifest.step, manifest.files | {f"{PARAMETERS}/{file.name}": read_record(file)})
    )
    with pytest.raises(UserError, match="embeddings differ from the trainer's"):
        convert(copy, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_exports_in_several_files_hold_the_float32_exports_weights_rounded(
    run, export, tmp_path, dtype, monkeypatch
):
    # The run was started in another folder, and named its backbone from there.
    monkeypatch.chdir(tmp_path)
    said = []
    narrow = convert(run, Path("narrow"), dtype=dtype, max_shard_size="50KB", say=said.append)
    assert len(said) == 1 and "largest cosine distance" in said[0]
    files = sorted(narrow.glob("model-*.safetensors"))
    places = json.loads((narrow / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 2 and {path.name for path in files} == set(places.values())
    rounded = {name: weight for path in files for name, weight in load_file(path).items()}
    whole = load_file(export / "model.safetensors")
    assert rounded.keys() == whole.keys() == places.keys()
    for name, weight in whole.items():
        assert torch.equal(rounded[name], weight.to(getattr(torch, dtype))), name


def test_an_adapter_export_holds_what_was_trained_alone_and_embeds_as_the_whole_one(run, export, tmp_path):
    adapter = convert(run, tmp_path / "adapter", adapter=True)
    held = load_file(adapter / "model.safetensors").keys()
    assert held and all("prefix" in name or name.startswith("fusion.") for name in held)
    batch = items("mixed", 4)
    whole, own = (load_export(path).embed(batch) for path in (export, adapter))
    # One weight instead of two products, as in test_adapters.py.
    for name in ("paths", "fused"):
        torch.testing.assert_close(own[name], whole[name], atol=1e-5, rtol=0)


def test_peft_alone_reads_the_adapter_and_merges_it_to_the_exported_weights(run, export, tmp_path):
    said = []
    adapter = convert(run, tmp_path / "adapter", adapter=True, check=False, say=said.append)
    assert said[0].startswith("Not checked")
    backbone = AutoModel.from_pretrained(read_run_config(run).model.path)
    merged = PeftModel.from_pretrained(backbone, adapter, subfolder="adapter").merge_and_unload().state_dict()
    whole = load_file(export / "model.safetensors")
    assert any("q_proj" in name for name in merged)
    for name, weight in merged.items():
        torch.testing.assert_close(weight, whole[f"backbone.{name}"], atol=1e-6, rtol=0)


def test_a_conversion_that_is_killed_leaves_no_export_and_the_next_one_removes_what_is_left(run, tmp_path):
    command = [sys.executable, "-m", "pdfx", "convert", str(run), "--out", str(tmp_path / "export")]
    process = warm.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".export.*.draft/export/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["export"]
    assert not (tmp_path / "export").exists()
    convert(run, tmp_path / "export", check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_value_too_large_for_float16_is_refused_by_name():
    values = torch.tensor([1.0, 70_000.0])
    with pytest.raises(UserError, match="fusion.logits holds a value of 7e.04, which float16 has no room for"):
        narrowed("fusion.logits", values, torch.float16)
    assert torch.equal(narrowed("fusion.logits", values, torch.bfloat16), values.bfloat16())


def test_a_missing_shard_a_used_directory_and_a_folder_that_is_no_run_are_told_in_a_sentence(run, export, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    next((copy / "checkpoints/step-00000002/parameters").glob("rank-00001-*")).unlink()
    with pytest.raises(UserError, match="not a whole checkpoint.*rank-00001-of-00002.safetensors is missing"):
        convert(copy, tmp_path / "export")
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(run, export)
    with pytest.raises(UserError, match="is not a run directory"):
        convert(tmp_path, tmp_path / "export")
    with pytest.raises(UserError, match="step-00000007 is not a whole checkpoint"):
        convert(run, tmp_path / "export", checkpoint="7")


def test_a_checkpoint_of_another_configuration_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    tree["model"]["prefix"]["length"] = 6
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(
        UserError, match="model.prefix.length is '6' and was '4' up to .*, which changes every embedding"
    ):
        convert(copy, tmp_path / "export")
    # With a checkpoint that agrees, so that only the weights can tell.
    checkpoint = newest_whole(copy)[0].path
    shutil.copyfile(copy / "config.yaml", checkpoint / "config.yaml")
    manifest = read_manifest(checkpoint)
    write_manifest(
        checkpoint, Manifest(manifest.step, manifest.files | {"config.yaml": read_record(checkpoint / "config.yaml")})
    )
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
    settings["model"] |= {
        "modules": [str(ROOT / "launch/quickstart/efficientnet_lite.py")],
        "trust_remote_code": True,
        "matryoshka_dims": [],
        "lora": None,
    }
    config = parse_config(settings)
    embedder = build_embedder(config).eval()
    export, probe = tmp_path / "export", tmp_path / "probe"
    write_documents(build_on_meta(config), export, config, Checkpoint(tmp_path, Manifest(0, {})), torch.float32)
    save_file(
        {name: weight.contiguous() for name, weight in embedder.state_dict().items()},
        export / "model.safetensors",
        {"format": "pt"},
    )
    write_probe(embedder, probe)
    assert verify_export(export, probe) < 1e-4
    printed = warm.run(
        [sys.executable, "-c", LOAD_IN_PDFX, str(export)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "brings code of its own (efficientnet_lite.py)" in printed[0]
    assert printed[1] == "torch.Size([1, 3, 256])"


def write_probe(embedder: ParallelEmbedder, probe: Path) -> None:
    """The probe that a trainer would have left."""
    probe.mkdir()
    batch = items("image", 2)
    for number, item in enumerate(batch):
        item["images"][0].save(probe / f"{number}.png")
    entries = [
        {"side": "query", "text": item["text"], "images": [f"{number}.png"]} for number, item in enumerate(batch)
    ]
    (probe / "items.json").write_text(json.dumps(entries))
    output = embedder.embed(batch)
    save_file({name: output[name].contiguous() for name in ("paths", "fused")}, probe / "embeddings.safetensors")
