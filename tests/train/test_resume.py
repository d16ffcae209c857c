"""Files of a checkpoint that could run code are refused."""

import os

import pytest
import torch

from pdfx.checkpoint.resume import read_objective
from pdfx.errors import UserError


def test_a_file_that_would_run_code_is_refused_in_a_sentence(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"variational": Harmful()}, tmp_path / "objective.pt")
    with pytest.raises(UserError, match="objective.pt cannot be read safely: Weights only load failed"):
        read_objective(tmp_path / "objective.pt")
    assert not (tmp_path / "harm").exists()


def test_a_damaged_or_missing_file_is_told_in_a_sentence(tmp_path):
    torch.save({"variational": torch.zeros(1000)}, tmp_path / "objective.pt")
    os.truncate(tmp_path / "objective.pt", 1000)
    for name in ("objective.pt", "other.pt"):
        with pytest.raises(UserError, match=f"{name} cannot be read safely"):
            read_objective(tmp_path / name)
