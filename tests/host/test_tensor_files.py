"""Tensor files are safetensors files: the library reads what we write and we read what it writes, whole or in pieces;
damaged ones are refused."""

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pdfx.errors import UserError
from pdfx.host.tensor_files import Entry, TensorFile, write_tensors

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "narrow": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "counter": torch.tensor(7),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 3),
}


def write(path, metadata=None):
    entries = [
        (Entry(name, tensor.dtype, tuple(tensor.shape)), tensor.reshape(-1).split(5))
        for name, tensor in TENSORS.items()
    ]
    return write_tensors(path, entries, metadata or {})


def test_the_library_reads_what_was_written_piece_by_piece_and_the_record_is_the_files(tmp_path):
    record = write(tmp_path / "own.safetensors", {"format": "pt"})
    loaded = load_file(tmp_path / "own.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    data = (tmp_path / "own.safetensors").read_bytes()
    assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_what_the_library_wrote_is_read_whole_and_in_slices(tmp_path):
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"key": "value"})
    file = TensorFile(tmp_path / "theirs.safetensors")
    assert file.metadata == {"key": "value"} and file.entries.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(file.read_whole(name), tensor)
    assert torch.equal(file.read("matrix", 5, 3), torch.tensor([5.0, 6.0, 7.0]))
    assert torch.equal(file.read("narrow", 9), TENSORS["narrow"].reshape(-1)[9:])


def test_pieces_that_do_not_make_up_their_tensor_are_refused(tmp_path):
    entry = Entry("matrix", torch.float32, (3, 4))
    with pytest.raises(ValueError, match="12 elements, but its pieces have 11"):
        write_tensors(tmp_path / "short.safetensors", [(entry, [torch.zeros(11)])], {})
    with pytest.raises(ValueError, match="is torch.float32, but a piece of it is torch.float64"):
        write_tensors(tmp_path / "wide.safetensors", [(entry, [torch.zeros(12).double()])], {})


def test_files_that_are_cut_short_or_lie_about_their_tensors_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "own.safetensors"
    write(path)
    data = path.read_bytes()
    for damaged in (
        b"",
        data[:5],
        data[:60],
        data[:-1],
        b"\xff" * 8 + data[8:],
        data.replace(b'"F32"', b'"F99"'),
        data.replace(b"[3,4]", b"[9,4]"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="own.safetensors is not a safetensors file, or is damaged"):
            TensorFile(path)
    with pytest.raises(UserError, match="There is no file"):
        TensorFile(tmp_path / "other.safetensors")


def test_a_file_that_is_cut_short_while_it_is_open_is_told(tmp_path):
    path = tmp_path / "own.safetensors"
    write(path)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="ends before its last tensor"):
        file.read("flags")
