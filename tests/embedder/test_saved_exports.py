"""An export that is loaded and saved elsewhere is an export again, by whatever class it was loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_exports import tiny_export
from tiny_models import FAMILIES, items, tiny_backbone

import pdfx.model
from pdfx.convert.check import verify_export
from pdfx.embedder.exports import load_export
from pdfx.model import ParallelEmbedder, families
from pdfx.model.fusion import fuse, unit

SAVE_WITHOUT_PDFX = """
import sys
sys.modules["pdfx"] = None
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2], max_shard_size="50KB")
"""


@pytest.mark.process
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_and_saved_elsewhere_embeds_alike_without_pdfx(tmp_path, family):
    export, probe = tiny_export(tmp_path, family), tmp_path / "probe"
    write_probe(load_export(export), probe)
    ParallelEmbedder.from_pretrained(export).save_pretrained(tmp_path / "second")
    subprocess.run(
        [sys.executable, "-P", "-c", SAVE_WITHOUT_PDFX, str(tmp_path / "second"), str(tmp_path / "third")],
        cwd=tmp_path,
        check=True,
        timeout=200,
    )
    assert verify_export(tmp_path / "third", probe) < 1e-6
    names = {path.name for path in export.iterdir()}
    assert {path.name for path in (tmp_path / "second").iterdir()} == names
    assert {path.name for path in (tmp_path / "third").iterdir() if "safetensors" not in path.name} == names - {
        "model.safetensors"
    }


def write_probe(embedder: ParallelEmbedder, probe: Path) -> None:
    """The probe that a trainer would have left."""
    probe.mkdir()
    batch = items("image", 2)
    for number, item in enumerate(batch):
        item["images"][0].save(probe / f"{number}.png")
    (probe / "items.json").write_text(
        json.dumps([{"side": "query", "text": item["text"], "images": [f"{i}.png"]} for i, item in enumerate(batch)])
    )
    output = embedder.embed(batch)
    save_file({name: output[name].contiguous() for name in ("paths", "fused")}, probe / "embeddings.safetensors")


def test_a_model_whose_own_modules_are_not_known_is_not_saved_without_them(tmp_path):
    model = ParallelEmbedder.from_backbone(
        str(tiny_backbone("qwen2_vl", tmp_path / "backbone")), paths=1, modules=["tower.py"]
    )
    with pytest.raises(ValueError, match="The model needs the modules tower.py; say where they are"):
        model.save_pretrained(tmp_path / "export")
    (tmp_path / "tower.py").write_text("LOADED = True\n")
    model.module_files = [tmp_path / "tower.py"]
    model.save_pretrained(tmp_path / "export")
    assert "tower" in (tmp_path / "export/custom_code_files.py").read_text()
    loaded = ParallelEmbedder.from_pretrained(tmp_path / "export")
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/tower.py").read_text() == "LOADED = True\n"
    with pytest.raises(ValueError, match="would leave the processor behind"):
        loaded.save_pretrained(tmp_path / "hub", push_to_hub=True)


def test_the_entry_files_import_by_themselves_all_that_they_reach():
    # transformers 5.8 to 5.10 copy only what the file of the class itself imports.
    folder = Path(pdfx.model.__file__).parent

    def imports(name: str) -> set[str]:
        return set(re.findall(r"^\s*from \.(\w+) import", (folder / f"{name}.py").read_text(), re.MULTILINE))

    for entry in ("configuration", "modeling"):
        reached, waiting = set(), imports(entry)
        while waiting:
            reached |= waiting
            waiting = set().union(*map(imports, waiting)) - reached
        assert reached == imports(entry), entry


def test_a_transformers_that_is_too_old_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    export = tiny_export(tmp_path, "llava_next")
    monkeypatch.setattr(families.transformers, "__version__", "5.5.4")
    with pytest.raises(ValueError, match="needs transformers 5.6 or later, and 5.5.4 is installed"):
        ParallelEmbedder.from_pretrained(export)
    monkeypatch.setattr(families.transformers, "__version__", "5.6.0.dev0")
    assert ParallelEmbedder.from_pretrained(export).family.model_type == "llava_next"
    assert families.transformers.__version__ == "5.6.0.dev0"


@pytest.mark.parametrize("fusion", ["mean", "softmax", "routed", "concat"])
def test_a_cut_fusion_holds_the_leading_dimensions_of_every_path(tmp_path, fusion):
    model = ParallelEmbedder.from_backbone(
        str(tiny_backbone("qwen2_vl", tmp_path / "backbone")),
        paths=3,
        prefix_length=2,
        prefix_init_std=1.0,
        fusion=fusion,
    )
    whole, cut = model.embed(items("text")), model.embed(items("text"), truncate_dim=8)
    leading = whole.paths[..., :8]
    torch.testing.assert_close(cut.paths, unit(leading))
    if fusion == "concat":
        assert cut.fused.shape == (4, 24)
        torch.testing.assert_close(cut.fused, fuse("concat", unit(leading)))
    else:
        torch.testing.assert_close(cut.fused, unit(whole.fused[:, :8]))
    torch.testing.assert_close(model.embed(items("text"), truncate_dim=32).paths, whole.paths)
    for wrong in (0, -1, 33, 96):
        with pytest.raises(ValueError, match="truncate_dim must be among 1 to 32"):
            model.embed(items("text"), truncate_dim=wrong)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        model.embed(items("text"), batch_size=0)
