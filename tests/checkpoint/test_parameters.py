"""Parameters are read in any slices from whatever parts ranks wrote."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdfx.checkpoint.parameters import MASTER, SavedParameters, part_file_name, parts_metadata
from pdfx.errors import UserError
from pdfx.host.tensor_files import Entry, write_tensors

SHAPES = {"a": (3, 5), "b": (1,), "c": (7,)}
VALUES = {
    name: torch.arange(torch.Size(shape).numel()).float() + 100 * number
    for number, (name, shape) in enumerate(SHAPES.items())
}


def write(directory, cuts: list[int], skipped: int | None = None) -> None:
    """One file per stretch between cuts of all parameters laid end to end."""
    directory.mkdir(exist_ok=True)
    edges, ranks = [0, *cuts, 23], len(cuts) + 1
    for rank in range(ranks):
        if rank == skipped:
            continue
        entries, starts, offset = [], {}, 0
        for name, value in VALUES.items():
            start, end = max(edges[rank] - offset, 0), min(edges[rank + 1] - offset, len(value))
            if start < end:
                starts[name] = start
                for kind, sign in ((MASTER, 1), ("exp_avg", -1)):
                    entries.append((Entry(f"{kind}/{name}", torch.float32, (end - start,)), [sign * value[start:end]]))
            offset += len(value)
        write_tensors(directory / part_file_name(rank, ranks), entries, parts_metadata(starts, SHAPES))


@given(cuts=st.lists(st.integers(0, 23), max_size=5).map(sorted), data=st.data())
def test_any_slice_of_any_parameter_comes_from_any_cutting(tmp_path_factory, cuts, data):
    directory = tmp_path_factory.mktemp("parameters")
    write(directory, cuts)
    saved = SavedParameters(sorted(directory.iterdir()))
    assert saved.shapes == SHAPES
    for name, value in VALUES.items():
        assert torch.equal(saved.read(MASTER, name), value) and torch.equal(saved.read("exp_avg", name), -value)
        start = data.draw(st.integers(0, len(value)))
        count = data.draw(st.integers(0, len(value) - start))
        assert torch.equal(saved.read(MASTER, name, start, count), value[start : start + count])


@pytest.mark.parametrize(("skipped", "element"), [(0, "0 of a"), (1, "10 of a"), (2, "4 of c")])
def test_a_missing_file_is_told_with_what_it_held(tmp_path, skipped, element):
    write(tmp_path / "parameters", [10, 20], skipped)
    with pytest.raises(UserError, match=f"holds element {element}; a rank's file is missing"):
        SavedParameters(sorted((tmp_path / "parameters").iterdir()))


def test_a_file_that_overlaps_another_is_refused_with_both_names(tmp_path):
    write(tmp_path, [10])
    write(tmp_path, [])
    with pytest.raises(
        UserError,
        match="rank-00000-of-00001.safetensors and .*rank-00000-of-00002.safetensors both hold element 0 of a",
    ):
        SavedParameters(sorted(tmp_path.iterdir()))
