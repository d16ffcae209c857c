"""Whether checkpoints are written in the background follows from each machine's memory."""

import pytest
import torch

from pdfx.checkpoint.writing import HostCopy, Need, by_memory

GIB = 2**30


def test_the_copies_of_a_machines_ranks_count_together_and_the_fullest_machine_decides():
    rank = [Need("a", 2 * GIB, 9 * GIB), Need("a", 2 * GIB, 8 * GIB), Need("b", 2 * GIB, 100 * GIB)]
    assert by_memory(rank) == (
        True,
        "Checkpoints are written in the background: copies take 4.00 GiB, at most 50% of the 8.0 GiB free on a.",
    )
    background, sentence = by_memory([*rank, Need("b", 49 * GIB, 99 * GIB)])
    assert (background, sentence) == (
        False,
        "Checkpoints are written while training waits: copies take 51.00 GiB, more than 50% of the 99.0 GiB free on b.",
    )


def test_a_copy_stays_as_it_was_while_the_original_changes_and_its_memory_is_used_again():
    copy, state = HostCopy(), {"master": [torch.ones(3)], "exp_avg": [torch.zeros(3)]}
    taken = copy.take(state)
    state["master"][0].add_(1)
    assert taken["master"][0].tolist() == [1, 1, 1]
    place = taken["master"][0].data_ptr()
    again = copy.take(state)
    assert again["master"][0].tolist() == [2, 2, 2] and again["master"][0].data_ptr() == place


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_copies_of_a_gpus_tensors_lie_in_pinned_memory_and_are_complete_when_they_are_handed_out():
    state = {"master": [torch.full((1 << 20,), 3.0, device="cuda")]}
    taken = HostCopy().take(state)
    state["master"][0].zero_()
    assert taken["master"][0].is_pinned() and bool((taken["master"][0] == 3).all())
