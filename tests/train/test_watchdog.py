"""When there is no progress for too long, and who is to blame."""

import pytest

from pdfx.guard_sections import GuardsSection
from pdfx.train.lifeline import Sign, blame
from pdfx.train.watchdog import Patience, Progress


@pytest.fixture
def progress() -> Progress:
    progress = Progress()
    for step in (1, 2):
        progress.begin(step)
    return progress


def seconds_until_over(patience: Patience, progress: Progress) -> int:
    return next(second for second in range(100_000) if patience.is_over(progress, 1.0))


def test_a_step_may_be_without_progress_for_the_set_time(progress):
    assert seconds_until_over(Patience(GuardsSection(stall_seconds=30)), progress) == 30


def test_every_mark_of_progress_starts_the_time_anew(progress):
    patience = Patience(GuardsSection(stall_seconds=3))
    for _ in range(10):
        assert not any(patience.is_over(progress, 1.0) for _ in range(3))
        progress.phase("embed")


def test_a_run_whose_steps_are_slow_gets_five_times_its_slowest_progress(progress):
    patience = Patience(GuardsSection(stall_seconds=30))
    for _ in range(20):
        assert not patience.is_over(progress, 1.0)
    progress.phase("backward")
    assert seconds_until_over(patience, progress) == 100


def test_starting_the_first_step_checkpoints_and_evaluations_may_take_longer(progress):
    settings = GuardsSection(stall_seconds=30, pause_seconds=50)
    assert seconds_until_over(Patience(settings), Progress()) == 50
    first = Progress()
    first.begin(7)
    first.phase("embed")
    assert seconds_until_over(Patience(settings), first) == 50
    progress.mark("save a checkpoint", slow=True)
    patience = Patience(settings)
    assert seconds_until_over(patience, progress) == 50
    assert patience.setting == "guards.pause_seconds"
    # What a pause took says nothing about steps.
    progress.begin(3)
    assert seconds_until_over(patience, progress) == 30


def test_nothing_is_too_long_where_the_guard_is_switched_off(progress):
    patience = Patience(GuardsSection(stall_seconds=None))
    assert not any(patience.is_over(progress, 1000.0) for _ in range(100))


def sign(step: int, marks: int, waiting: bool = True, place: str = "somewhere") -> Sign:
    return Sign(1, step, marks, "embed a chunk", waiting, place)


@pytest.mark.parametrize(
    ("signs", "blamed"),
    [
        ([sign(3, 2), sign(3, 1), sign(3, 2)], [1]),
        ([sign(3, 1), sign(2, 9), sign(3, 1)], [1]),
        ([sign(3, 2), sign(3, 2), sign(3, 2, waiting=False)], [2]),
        ([sign(3, 2), sign(3, 2, place=""), sign(3, 1, waiting=False)], [1]),
        ([sign(3, 2), sign(3, 2)], [0, 1]),
    ],
    ids=["behind in the step", "behind by a step", "the only one that waits for nobody", "cannot say where it is", "all wait"],
)
def test_the_rank_that_holds_the_others_up_is_found_from_all_signs(signs, blamed):
    assert blame(signs) == blamed
