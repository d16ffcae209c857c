"""What a recipe becomes when another number of ranks or another stage takes its checkpoint up."""

from pathlib import Path

import pytest

from pdfx.config import parse_config
from pdfx.errors import UserError
from pdfx.train.schedule import sharding, take_over

PATH = Path("run/checkpoints/step-00000100")


def recipe(pairs: int, chunks: int, elastic: bool = True, **objective):
    train = {
        "output_dir": "run",
        "deepspeed": "zero.json",
        "max_steps": 10,
        "per_device_train_batch_size": pairs,
        "gradient_accumulation_steps": chunks,
    }
    tree = {
        "model": {"path": "x"},
        "data": {"train": "x"},
        "objective": {"diversity": "none"} | objective,
        "train": train | {"resume_elastic": elastic},
    }
    return parse_config(tree)


SAVED = sharding(recipe(4, 3), 3, 2)


@pytest.mark.parametrize(
    ("ranks", "pairs", "chunks"), [(1, 4, 6), (3, 4, 2), (6, 4, 1), (4, 2, 3), (24, 1, 1), (2, 12, 1)]
)
def test_the_global_batch_is_kept_by_the_number_of_chunks(ranks, pairs, chunks):
    config = recipe(pairs, 7)
    told = take_over(config, SAVED, 2, ranks, PATH)
    assert SAVED["global_batch"] == ranks * pairs * config.train.gradient_accumulation_steps == 24
    assert config.train.gradient_accumulation_steps == chunks
    assert told[0].startswith(f"The checkpoint {PATH} was saved by 2 ranks under ZeRO-3, and this run has {ranks} rank")
    assert (
        told[1]
        == f"train.gradient_accumulation_steps is {chunks} instead of 7, so that the global batch stays 24 pairs."
    )


def test_a_batch_that_the_ranks_cannot_make_is_refused_with_a_size_that_they_can():
    with pytest.raises(
        UserError,
        match=r"global batch of 24 pairs cannot be made of 4 ranks x 5 pairs: set "
        r"train.per_device_train_batch_size to 3\.",
    ):
        take_over(recipe(5, 1), SAVED, 3, 4, PATH)
    with pytest.raises(UserError, match="cannot be made of 5 ranks x 5 pairs: use a number of ranks that divides 24"):
        take_over(recipe(5, 1), SAVED, 3, 5, PATH)


def test_without_the_setting_a_change_is_refused_and_the_setting_is_named():
    with pytest.raises(
        UserError,
        match="saved by 2 ranks under ZeRO-3, and this run has 1 rank under ZeRO-3; set train.resume_elastic=true",
    ):
        take_over(recipe(4, 6, elastic=False), SAVED, 3, 1, PATH)


def test_where_nothing_is_shared_out_anew_the_recipe_stays_and_another_batch_is_told():
    config = recipe(4, 5, elastic=False)
    assert take_over(config, SAVED, 3, 2, PATH) == [
        "The global batch was 24 pairs up to the checkpoint and is 40 from here on."
    ]
    assert config.train.gradient_accumulation_steps == 5
    assert take_over(recipe(4, 3), SAVED, 3, 2, PATH) == []


def test_a_batch_that_an_elastic_resume_kept_stays_where_the_run_is_started_once_more_as_it_was():
    config = recipe(4, 5)
    told = ["train.gradient_accumulation_steps is 3 instead of 5, so that the global batch stays 24 pairs."]
    assert take_over(config, SAVED, 3, 2, PATH) == told
    assert config.train.gradient_accumulation_steps == 3


def test_only_another_number_of_ranks_changes_the_estimate_of_mutual_information():
    told = [
        take_over(recipe(4, 3, diversity="mutual_information"), SAVED, stage, ranks, PATH)
        for stage, ranks in ((2, 2), (3, 1))
    ]
    assert [
        any("The diversity term is about the pairs of each rank" in sentence for sentence in sentences)
        for sentences in told
    ] == [False, True]
