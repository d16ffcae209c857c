"""Files from elsewhere run nothing: a corpus of hostile runs, exports, checkpoints, backbones, shards and servers, with
a witness of whatever is executed."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import yaml
from checkpoint.made import make_checkpoint
from command_line import run_pdfx
from range_server import RangeServer
from safetensors.torch import load_file, save_file
from tiny_exports import PATHS, tiny_export
from tiny_models import tiny_backbone
from tiny_runs import tiny_tree
from tiny_shards import make_shards

from data_tools.inspect.check import check_shards
from pdfx.checkpoint.directory import OBJECTIVE, PROBE, open_verified
from pdfx.checkpoint.resume import read_objective
from pdfx.config import dump_config, load_config, parse_config
from pdfx.data import SampleError, ShardedDataset
from pdfx.embedder.build import build_embedder
from pdfx.embedder.exports import load_export
from pdfx.errors import UserError
from pdfx.model import ParallelEmbedder

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


class Harm:
    """What unpickling it does is seen."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """A path that comes into being when something of the corpus is executed: Python, a pickle, or Ghostscript. It must
    never exist."""
    seen = tmp_path / "executed"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\nmkdir -p {seen}\n")
    (tools / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield seen
    assert not seen.exists(), "something was executed"


def code(witness: Path) -> str:
    return f"import os\nos.makedirs({str(witness)!r}, exist_ok=True)\n"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def adapter(export, tmp_path_factory) -> Path:
    """An export of what was trained alone, as ``pdfx convert --adapter`` writes it."""
    folder, backbone = tmp_path_factory.mktemp("adapter") / "adapter", export.parent / "backbone"
    shutil.copytree(export, folder)
    edit(folder / "config.json", base_model={"path": str(backbone), "revision": None})
    own = {
        name: value
        for name, value in load_file(folder / "model.safetensors").items()
        if ".prefix." in name or not name.startswith("backbone.")
    }
    save_file(own, folder / "model.safetensors", {"format": "pt"})
    embedder = ParallelEmbedder.from_backbone(str(backbone), paths=PATHS, prefix_length=4)
    settings = peft.LoraConfig(r=2, target_modules=r".*language_model\..*q_proj", task_type="FEATURE_EXTRACTION")
    peft.get_peft_model(embedder.backbone, settings).save_pretrained(folder / "adapter")
    return folder


def pickled_weights(folder: Path, witness: Path, name: str = "pytorch_model.bin") -> None:
    torch.save({"weight": Harm(witness)}, folder / name)
    for file in folder.glob("*.safetensors"):
        file.unlink()


AUTO = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoProcessor": "evil.Processor",
    "AutoTokenizer": ["evil.T", "evil.T"],
}


def adapter_beside(folder: Path, _) -> None:
    settings = {
        "peft_type": "LORA",
        "megatron_config": {"x": 1},
        "megatron_core": "evil",
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(folder),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def nested(folder: Path, **changes) -> None:
    edit(folder / "config.json", backbone=json.loads((folder / "config.json").read_text())["backbone"] | changes)


EXPORTS = {
    "modules for an unknown type": (
        lambda f, _: (nested(f, model_type="evil"), edit(f / "config.json", modules=["evil.py"])),
        "brings code of its own",
    ),
    "modules for a known type": (lambda f, _: edit(f / "config.json", modules=["evil.py"]), None),
    "modules elsewhere": (
        lambda f, _: (nested(f, model_type="evil"), edit(f / "config.json", modules=["../export/evil.py"])),
        "brings code of its own",
    ),
    "remote code": (lambda f, _: edit(f / "config.json", auto_map=AUTO), None),
    "other model code": (lambda f, w: [file.write_text(code(w)) for file in f.glob("*.py")], None),
    "remote code of the backbone": (lambda f, _: nested(f, auto_map=AUTO), None),
    "remote code of the backbone and no other": (
        lambda f, _: nested(f, auto_map=AUTO, model_type="evil"),
        "cannot be loaded",
    ),
    "remote processor": (
        lambda f, _: edit(f / "processor_config.json", auto_map=AUTO, processor_class="Evil"),
        "cannot be loaded",
    ),
    "remote tokenizer": (
        lambda f, _: edit(f / "tokenizer_config.json", auto_map=AUTO, tokenizer_class="Evil"),
        "cannot be loaded",
    ),
    "attention from the hub": (
        lambda f, _: nested(f, attn_implementation="evil/attention"),
        "which is code from elsewhere",
    ),
    "an adapter beside the weights": (adapter_beside, "holds a PEFT adapter"),
    "pickled weights": (pickled_weights, "cannot be loaded"),
    "a template": (
        lambda f, w: (f / "chat_template.jinja").write_text(
            "{{ cycler.__init__.__globals__.os.mkdir('" + str(w) + "') }}"
        ),
        None,
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_runs_nothing_unless_it_is_trusted(export, witness, tmp_path, monkeypatch, kind):
    folder = shutil.copytree(export, tmp_path / "export")
    (folder / "evil.py").write_text(code(witness))
    # As under ``python -m`` in that folder.
    monkeypatch.syspath_prepend(folder)
    spoil, sentence = EXPORTS[kind]
    spoil(folder, witness)
    if sentence is None:
        load_export(folder).embed([{"text": "a frog"}])
    else:
        with pytest.raises(UserError, match=sentence):
            load_export(folder)
    assert "evil" not in sys.modules


ADAPTERS = {
    "as it is": (lambda f, _: None, None),
    "megatron": (
        lambda f, _: edit(f / "adapter/adapter_config.json", megatron_core="evil", megatron_config={"x": 1}),
        "in its adapter_config",
    ),
    "megatron's settings alone": (
        lambda f, _: edit(f / "adapter/adapter_config.json", megatron_config={"x": 1}),
        "'megatron_config' in its adapter_config",
    ),
    "another parent library": (
        lambda f, _: edit(f / "adapter/adapter_config.json", auto_mapping={"parent_library": "evil"}),
        "'auto_mapping' in its adapter",
    ),
    "layers twice": (
        lambda f, _: edit(f / "adapter/adapter_config.json", layer_replication=[[0, 1], [0, 1]]),
        "'layer_replication' in its adapter",
    ),
    "another method": (
        lambda f, _: edit(f / "adapter/adapter_config.json", peft_type="VERA"),
        "'peft_type' in its adapter_config",
    ),
    "pickled adapter": (lambda f, w: pickled_weights(f / "adapter", w, "adapter_model.bin"), "cannot be loaded"),
    "pickled weights": (pickled_weights, "cannot be loaded"),
    "a backbone with remote code": (
        lambda f, w: backbone_of(f, lambda b: edit(b / "config.json", auto_map=AUTO)),
        None,
    ),
    "a backbone with pickled weights": (
        lambda f, w: backbone_of(f, lambda b: pickled_weights(b, w)),
        "cannot be loaded",
    ),
    "a backbone with an adapter": (lambda f, w: backbone_of(f, lambda b: adapter_beside(b, w)), "holds a PEFT adapter"),
}


def backbone_of(folder: Path, spoil) -> None:
    settings = json.loads((folder / "config.json").read_text())
    copy = shutil.copytree(settings["base_model"]["path"], folder.parent / "backbone")
    shutil.copyfile(folder / "evil.py", copy / "evil.py")
    spoil(copy)
    edit(folder / "config.json", base_model={"path": str(copy), "revision": None})


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_runs_nothing(adapter, witness, tmp_path, monkeypatch, kind):
    folder = shutil.copytree(adapter, tmp_path / "export")
    (folder / "evil.py").write_text(code(witness))
    monkeypatch.syspath_prepend(folder)
    spoil, sentence = ADAPTERS[kind]
    spoil(folder, witness)
    if sentence is None:
        load_export(folder)
    else:
        with pytest.raises(UserError, match=sentence):
            load_export(folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("command", ["embed", "evaluate", "report"])
def test_each_command_on_an_export_with_code_says_how_to_trust_it(export, witness, tmp_path, capfd, command):
    folder = shutil.copytree(export, tmp_path / "export")
    (folder / "evil.py").write_text(code(witness))
    EXPORTS["modules for an unknown type"][0](folder, witness)
    (tmp_path / "items.jsonl").write_text('{"text": "a frog"}\n')
    run = hostile_run(tmp_path, witness)
    (run / "metrics.jsonl").write_text("")
    shards = make_shards(tmp_path / "data", samples=4)
    words = {
        "embed": [folder, tmp_path / "items.jsonl", "--out", tmp_path / "out.npy"],
        "evaluate": [folder, shards],
        "report": [run, folder, shards, "--out", tmp_path / "report.html"],
    }
    status, _, error = run_pdfx(capfd, command, *words[command])
    assert status == 2 and "Traceback" not in error


def hostile_run(folder: Path, witness: Path, **model) -> Path:
    """A run whose configuration names Python files and claims to be trusted."""
    run = folder / "run"
    (folder / "evil.py").write_text(code(witness))
    tree = tiny_tree(folder / "tiny", model={"modules": [str(folder / "evil.py")], "trust_remote_code": True} | model)
    text = dump_config(parse_config(tree))
    make_checkpoint(run, 1, files={"config.yaml": text.encode()})
    (run / "config.yaml").write_text(text)
    return run


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "{run}", "--out", "{out}"],
        ["train", "{run}/config.yaml", "--dry-run"],
        ["train", "{run}/config.yaml"],
    ],
)
@pytest.mark.parametrize("place", ["", "checkpoints/step-00000001/"])
def test_a_runs_python_files_run_only_with_consent_on_the_command_line(witness, tmp_path, capfd, words, place):
    run = hostile_run(tmp_path, witness)
    if place and words[0] == "convert":
        return
    words = [word.format(run=run / place, out=tmp_path / "out").replace("//", "/") for word in words]
    status, _, error = run_pdfx(capfd, *words)
    assert (
        status == 2
        and "Python code that would run here; read it, then allow it with model.trust_remote_code=true"
        in " ".join(error.split())
    )


def test_with_consent_they_run(tmp_path, capfd):
    seen = tmp_path / "executed"
    run = hostile_run(tmp_path, seen)
    assert load_config(run / "config.yaml", ["model.trust_remote_code=true"]).model.trust_remote_code
    run_pdfx(capfd, "convert", run, "--out", tmp_path / "out", "--trust-remote-code")
    assert seen.exists()


BACKBONES = {
    "remote code": (lambda f, _: edit(f / "config.json", auto_map=AUTO), None),
    "remote code and no other": (
        lambda f, _: edit(f / "config.json", auto_map=AUTO, model_type="evil"),
        "cannot be used as a backbone",
    ),
    "remote processor": (
        lambda f, _: edit(f / "processor_config.json", auto_map=AUTO, processor_class="Evil"),
        "cannot be used as a backbone",
    ),
    "pickled weights": (pickled_weights, "cannot be used as a backbone"),
    "an adapter": (adapter_beside, "holds a PEFT adapter"),
    "attention from the hub": (
        lambda f, _: edit(f / "config.json", attn_implementation="evil/attention"),
        "which is code from elsewhere",
    ),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_runs_nothing_unless_it_is_trusted(witness, tmp_path, monkeypatch, kind):
    tree = tiny_tree(tmp_path, "llava_next", data={"train": "nowhere"})
    folder = tiny_backbone("llava_next", tmp_path / "llava_next")
    (folder / "evil.py").write_text(code(witness))
    monkeypatch.syspath_prepend(folder)
    spoil, sentence = BACKBONES[kind]
    spoil(folder, witness)
    if sentence is None:
        build_embedder(parse_config(tree))
    else:
        with pytest.raises(UserError, match=sentence):
            build_embedder(parse_config(tree))


def test_a_checkpoints_pickle_is_refused(witness, tmp_path):
    stream = tmp_path / "objective"
    torch.save({"variational": Harm(witness)}, stream)
    path = make_checkpoint(tmp_path / "run", 1, files={OBJECTIVE: stream.read_bytes()})
    with pytest.raises(UserError, match="cannot be read safely"):
        read_objective(open_verified(path).file(OBJECTIVE))


@pytest.mark.process
def test_a_probe_starts_no_program(export, witness, tmp_path):
    probe = tmp_path / PROBE
    probe.mkdir()
    (probe / "0.0.png").write_bytes(EPS)
    (probe / "items.json").write_text(json.dumps([{"side": "query", "text": "", "images": ["0.0.png"]}]))
    script = str(Path(sys.modules["pdfx"].__file__).with_name("convert") / "export_check.py")
    done = subprocess.run(
        [sys.executable, "-P", script, str(export), str(probe), str(tmp_path / "result")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "are not a picture in a known format" in done.stderr


SHARDS = {
    "pickled offsets": (lambda f, w: (f / "00000.idx.npy").write_bytes(pickled_array(w)), "cannot be read"),
    "a pickle for offsets": (
        lambda f, w: (f / "00000.idx.npy").write_bytes(pickle.dumps(Harm(w)) + bytes(400)),
        "cannot be read",
    ),
    "names that lead elsewhere": (
        lambda f, _: (f / "index.json").write_text((f / "index.json").read_text().replace("00000.tar", "../x.tar")),
        "is damaged",
    ),
}


def pickled_array(witness: Path) -> bytes:
    file = witness.with_name("array.npy")
    np.save(file, np.array([Harm(witness)] * 99, dtype=object), allow_pickle=True)
    return file.read_bytes()


@pytest.mark.parametrize("served", [False, True], ids=["folder", "server"])
@pytest.mark.parametrize("kind", SHARDS)
def test_shards_run_nothing(witness, tmp_path, kind, served):
    folder = make_shards(tmp_path / "data", samples=4)
    spoil, sentence = SHARDS[kind]
    spoil(folder, witness)
    with RangeServer(folder) as server, pytest.raises((UserError, SampleError), match=sentence):
        ShardedDataset(server.url if served else folder).read(0)
    assert check_shards(folder, full=True)


def test_a_picture_in_a_shard_starts_no_program(witness, tmp_path):
    folder = make_shards(tmp_path / "data", samples=1)
    tar, png = folder / "00000.tar", (tmp_path / "data/images/0.png").read_bytes()
    tar.write_bytes(tar.read_bytes().replace(png, EPS.ljust(len(png), b" ")))
    with pytest.raises(SampleError, match="sample-000"):
        ShardedDataset(folder).read(0)


def test_the_recipe_of_a_run_gives_no_consent_and_a_users_own_does(tmp_path):
    tree = {"model": {"path": "x", "trust_remote_code": True}, "data": {"train": "x"}}
    tree["train"] = {"output_dir": "r", "deepspeed": "z", "max_steps": 1, "per_device_train_batch_size": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert load_config(tmp_path / "config.yaml").model.trust_remote_code
    (tmp_path / "checkpoints").mkdir()
    assert not load_config(tmp_path / "config.yaml").model.trust_remote_code
