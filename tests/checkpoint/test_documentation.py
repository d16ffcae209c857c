"""What the documentation says instead of DeepSpeed's tools works on a checkpoint."""

import re
from pathlib import Path

import torch
from checkpoint.made import make_checkpoint

from pdfx.checkpoint.parameters import MASTER, part_file_name, parts_metadata
from pdfx.host.tensor_files import Entry, write_tensors


def test_the_documented_lines_read_parameters(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    values, file = torch.arange(6.0), tmp_path / part_file_name(0, 1)
    write_tensors(
        file,
        [(Entry(f"{MASTER}/weight", torch.float32, (6,)), [values])],
        parts_metadata({"weight": 0}, {"weight": (2, 3)}),
    )
    make_checkpoint(tmp_path / "runs" / "first", 2000, files={f"parameters/{file.name}": file.read_bytes()})
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(script, found)
    assert found["state"].keys() == {"weight"} and torch.equal(found["state"]["weight"], values.view(2, 3))
