"""What an export is, is what is read of it: a change of any of its files is noticed, or nothing reads it."""

import json
import os
import shutil
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_checkpoints import checkpoint_of, recipe, trained
from tiny_models import tiny_backbone

import pdfx.embedder.exports
from pdfx.convert.adapter import write_adapter
from pdfx.convert.documents import write_documents, write_record
from pdfx.convert.weights import WeightSource, write_shards
from pdfx.embedder.build import build_on_meta
from pdfx.embedder.exports import RECORD, files_of, opened_export
from pdfx.embedder.lora import remove_adapters
from pdfx.errors import UserError
from pdfx.evaluate.embed import EmbedJob, embed_file

FORMS = ["whole", "adapter"]
ITEM = {"text": "a green frog", "images": [Image.new("RGB", (40, 30), "green")]}
BASE = "backbone/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A folder for each form: what a conversion writes, and the backbone that it was made from."""
    folders = {}
    for form in FORMS:
        folder = tmp_path_factory.mktemp(form)
        config = recipe(tiny_backbone("qwen2_vl", folder / "backbone"), lora={"r": 2, "targets": ["q_proj"]})
        checkpoint = checkpoint_of(trained(config), folder / "checkpoint", ranks=1)
        weights, export = WeightSource(build_on_meta(config).eval(), config.model, checkpoint), folder / "export"
        if form == "adapter":
            of_weights = write_adapter(weights, export, config, checkpoint, torch.float32)
        else:
            write_documents(remove_adapters(build_on_meta(config)), export, config, checkpoint, torch.float32)
            of_weights = write_shards(export, weights.merged_weights(torch.float32), 50_000)
        write_record(export, config, checkpoint, of_weights, Path(config.model.path) if form == "adapter" else None)
        folders[form] = folder
    return folders


@pytest.fixture(params=FORMS)
def folder(made, request) -> Path:
    return made[request.param]


@pytest.fixture(scope="module")
def unchanged(made) -> dict[Path, torch.Tensor]:
    """What each folder's export embeds."""
    return {folder: read(folder / "export") for folder in made.values()}


@pytest.fixture
def expected(unchanged, folder) -> torch.Tensor:
    return unchanged[folder]


@pytest.fixture
def loads_once(monkeypatch) -> None:
    """One load of the model serves all changes of an export's files, if only what happens meanwhile differs."""
    monkeypatch.setattr(pdfx.embedder.exports, "load_export", cache(pdfx.embedder.exports.load_export))


def listed(folder: Path) -> list[str]:
    """Every file of an export that a load may read, and the weights elsewhere; relative to the folder of both."""
    return [*(f"export/{name}" for name in files_of(folder / "export")), *([BASE] if "adapter" in folder.name else [])]


def read(export: Path, loaded=lambda: None) -> torch.Tensor:
    with opened_export(export) as model:
        loaded()
        return model.embed([ITEM]).paths


class Kept:
    """Changes of a file that are taken back."""

    def __init__(self, path: Path, aside: Path):
        self.path, self.aside = path, aside

    def __enter__(self):
        shutil.copy2(self.path, self.aside)

    def __exit__(self, *exception):
        if self.path.is_symlink() or self.path.exists():
            self.path.unlink()
        shutil.copy2(self.aside, self.path)
        self.aside.unlink()


def other_bytes(path: Path) -> bytes:
    """The same number of bytes, of which the last ones that matter are others; of weights, other weights."""
    content = bytearray(path.read_bytes())
    place = len(content) - 2 if path.suffix == ".safetensors" else content.rindex(b"e")
    content[place] ^= 1
    return bytes(content)


def change(path: Path, kind: str) -> None:
    if kind == "removed":
        path.unlink()
    elif kind == "written over":
        content = other_bytes(path)
        with path.open("r+b") as file:
            file.write(content)
    else:
        path.with_name("new").write_bytes(other_bytes(path))
        if kind == "replaced":
            path.with_name("new").replace(path)
        else:
            path.unlink()
            path.with_name("new").replace(path.with_name(".elsewhere"))
            path.symlink_to(path.with_name(".elsewhere"))


@pytest.mark.parametrize("kind", ["removed", "replaced", "written over", "linked to another"])
def test_a_file_that_is_not_what_the_conversion_wrote_is_refused(folder, kind, tmp_path):
    for name in listed(folder):
        with Kept(folder / name, tmp_path / "aside"):
            change(folder / name, kind)
            with pytest.raises(
                UserError,
                match="is missing|is not the file of the conversion|is damaged|holds no config.json|cannot be read",
            ) as error:
                read(folder / "export")
            assert Path(name).name in str(error.value)
    read(folder / "export")


def test_any_damage_of_the_record_is_told(folder, tmp_path):
    record = folder / "export" / RECORD
    with Kept(record, tmp_path / "aside"):
        more = {"more.json": json.loads(record.read_text())["files"]["config.json"]}
        for damaged in (
            "",
            "[]",
            '{"files": 3}',
            '{"files": {"config.json": {"bytes": 1}}}',
            json.dumps({"files": more}),
        ):
            record.write_text(damaged)
            with pytest.raises(UserError, match=f"{RECORD} is damaged|more.json is missing"):
                read(folder / "export")
        # Its owner has made the export another one on purpose.
        record.unlink()
        read(folder / "export")


ADDED = [
    "preprocessor_config.json",
    "adapter_config.json",
    "added_tokens.json",
    "model-00009-of-00009.safetensors",
    "more/x.json",
    "more.py",
]


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_was_added_is_named(folder, expected, name):
    added = folder / "export" / name
    content = (
        min((folder / "export").glob("model*.safetensors")).read_bytes() if added.suffix == ".safetensors" else b"{}"
    )
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(content)
    try:
        with pytest.warns(UserWarning, match=f"holds {name}, which the conversion did not write"):
            embedded = read(folder / "export")
        assert torch.equal(embedded, expected)
    except UserError as error:
        assert str(folder / "export") in str(error)
    finally:
        added.unlink()
        if added.parent != folder / "export":
            added.parent.rmdir()


def test_documents_and_hidden_files_and_links_to_the_same_content_are_harmless(folder, expected, tmp_path):
    shutil.copytree(folder / "export", tmp_path / "export")
    for name in listed(folder):
        if name.startswith("export/"):
            kept = tmp_path / name.replace("/", "-")
            (tmp_path / name).rename(kept)
            (tmp_path / name).symlink_to(kept)
    for name in ("README.md", "notes.md", ".gitattributes", "__pycache__/x.pyc", ".cache/y.json"):
        (tmp_path / "export" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "export" / name).write_text("other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(read(tmp_path / "export"), expected)


def test_a_file_that_is_written_over_while_the_model_is_in_use_is_told_and_one_with_another_in_its_place_is_harmless(
    folder, expected, loads_once, tmp_path
):
    with opened_export(folder / "export") as model:
        for name in listed(folder):
            for kind in ("removed", "replaced", "linked to another"):
                with Kept(folder / name, tmp_path / "aside"):
                    change(folder / name, kind)
                    assert torch.equal(model.embed([ITEM]).paths, expected)
    for name in listed(folder):
        with (
            Kept(folder / name, tmp_path / "aside"),
            pytest.raises(UserError, match=f"{folder / name} changed while the model was in use"),
        ):
            read(folder / "export", lambda name=name: change(folder / name, "written over"))


@pytest.mark.parametrize("kind", ["removed", "replaced", "written over", "linked to another"])
def test_a_file_that_changes_while_the_model_is_loaded_is_told(folder, kind, loads_once, tmp_path, monkeypatch):
    load = pdfx.embedder.exports.load_export
    for name in listed(folder):

        def changed_at_the_end(*arguments, name=name):
            model = load(*arguments)
            change(folder / name, kind)
            return model

        with Kept(folder / name, tmp_path / "aside"):
            monkeypatch.setattr(pdfx.embedder.exports, "load_export", changed_at_the_end)
            with pytest.raises(UserError, match="changed while the model was loaded"):
                read(folder / "export")


def test_a_job_whose_model_was_written_over_writes_nothing(folder, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    name = listed(folder)[-1]
    job = EmbedJob(folder / "export", tmp_path / "lines.jsonl", tmp_path / "out.npy", batch_size=1)
    with Kept(folder / name, tmp_path / "aside"), pytest.raises(UserError, match="changed while the model was in use"):
        embed_file(job, on_progress=lambda done, _: change(folder / name, "written over") if done == 1 else None)
    assert os.listdir(tmp_path) == ["lines.jsonl"]
