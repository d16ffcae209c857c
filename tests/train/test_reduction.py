import pytest
import torch
from torch import nn

from pdfx.train.reduction import WideSums, choose_reduction, gradient_bytes

GIB = 2**30


def test_many_small_bf16_gradients_are_added_up_without_losing_any():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    sums = WideSums([parameter])
    # 1 and 256 times 2^-9: added one by one in bf16, whose next number after 1 is 1 + 2^-7, the small ones would all be
    # lost.
    for value in [1.0] + [2**-9] * 256:
        (parameter * torch.tensor([value, -value, 0.0], dtype=torch.bfloat16)).sum().backward()
        sums.add()
    sums.put_back()
    assert parameter.grad.tolist() == [1.5, -1.5, 0.0]
    assert parameter.grad.dtype == torch.bfloat16


def test_float32_gradients_are_left_to_torch():
    parameter = nn.Parameter(torch.zeros(2))
    sums = WideSums([parameter])
    for _ in range(3):
        parameter.sum().backward()
        sums.add()
    sums.put_back()
    assert parameter.grad.tolist() == [3.0, 3.0]


def test_gradients_of_trained_parameters_alone_take_memory_and_narrow_ones_their_wide_sums_too():
    module = nn.ModuleList(
        [
            nn.Linear(10, 10, bias=False),
            nn.Linear(10, 10, bias=False).bfloat16(),
            nn.Linear(99, 99).requires_grad_(False),
        ]
    )
    assert gradient_bytes(module) == 100 * 4 + 100 * (2 + 4)


@pytest.mark.parametrize(
    ("setting", "stage", "gradients", "once", "words"),
    [
        ("auto", 3, 8 * GIB, True, "once per step: whole, they take 8.00 GiB, at most 10% of a rank's 80 GiB"),
        ("auto", 3, 9 * GIB, False, "after each chunk: whole, they take 9.00 GiB, more than 10% of a rank's 80 GiB"),
        ("step", 2, 90 * GIB, True, "once per step, as train.gradient_reduction says"),
        ("chunk", 2, 1, False, "after each chunk, as train.gradient_reduction says"),
        ("chunk", 1, 90 * GIB, True, "as ZeRO stage 1 always does"),
    ],
)
def test_the_reduction_is_chosen_by_memory_unless_the_recipe_says_it_and_told_with_its_reason(
    setting, stage, gradients, once, words
):
    chosen, sentence = choose_reduction(setting, stage, gradients, 80 * GIB)
    assert chosen is once
    assert words in sentence
