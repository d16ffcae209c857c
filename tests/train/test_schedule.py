import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdfx.config import TrainSection
from pdfx.errors import UserError
from pdfx.train.schedule import count_steps, derived_seed, learning_rate_factor


def section(**values) -> TrainSection:
    return TrainSection(
        **{"output_dir": "run", "deepspeed": "zero.json", "per_device_train_batch_size": 4, "max_steps": 10} | values
    )


def test_warm_up_rises_linearly_to_1_and_linear_decay_would_reach_0_one_step_after_the_last():
    train = section(warmup_steps=4)
    factors = [learning_rate_factor(step, train, 10) for step in range(1, 12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0])


@given(kind=st.sampled_from(["linear", "cosine", "constant"]), warmup=st.integers(0, 30), total=st.integers(1, 40))
def test_every_step_learns_and_after_the_warm_up_the_rate_never_rises(kind, warmup, total):
    train = section(lr_scheduler_type=kind, warmup_steps=warmup)
    factors = [learning_rate_factor(step, train, total) for step in range(1, total + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[max(warmup - 1, 0) :]
    assert all(later <= earlier for earlier, later in zip(after, after[1:], strict=False))


def test_epochs_are_whole_global_batches_and_the_remainder_is_told():
    steps, sentence = count_steps(
        section(max_steps=None, num_train_epochs=2.5, gradient_accumulation_steps=2), samples=101, world_size=3
    )
    assert steps == 252 // 24
    assert "10 steps of 24 pairs (3 ranks x 4 pairs x 2 accumulation steps)" in sentence
    assert "the last 12 pairs" in sentence


def test_fewer_samples_than_one_global_batch_is_an_error():
    with pytest.raises(UserError, match="fewer than one global batch of 400"):
        count_steps(section(max_steps=None, num_train_epochs=1), samples=399, world_size=100)


def test_seeds_differ_by_every_argument_and_nothing_else():
    assert derived_seed(1, "dropout", 2, 3) == derived_seed(1, "dropout", 2, 3)
    assert (
        len(
            {
                derived_seed(1, "dropout", 2, 3),
                derived_seed(2, "dropout", 2, 3),
                derived_seed(1, "adapters", 2, 3),
                derived_seed(1, "dropout", 23),
            }
        )
        == 4
    )
