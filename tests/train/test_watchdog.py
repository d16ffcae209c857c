"""When there is no progress for too long, and who is to blame."""

from types import SimpleNamespace

import pytest

from pdfx.config.data_sections import DataSection
from pdfx.config.train_sections import GuardsSection
from pdfx.faults.heartbeats import Sign, blame
from pdfx.faults.progress import Patience, Progress
from pdfx.faults.shutdown import longest_read


@pytest.fixture
def progress() -> Progress:
    progress = Progress()
    for step in (1, 2):
        progress.begin(step)
        progress.phase("embed")
        progress.phase("backward")
    progress.begin(3)
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


def test_each_phase_has_a_limit_of_its_own_and_names_its_setting(progress):
    settings = GuardsSection(stall_seconds=30, first_seconds=40, pause_seconds=50)
    start, first = Progress(), Progress()
    first.begin(7)
    first.phase("embed")
    patience = Patience(settings)
    assert (seconds_until_over(patience, start), patience.setting) == (50, "guards.pause_seconds")
    assert (seconds_until_over(patience, first), patience.setting) == (40, "guards.first_seconds")
    progress.mark("save a checkpoint", "pause")
    assert (seconds_until_over(patience, progress), patience.setting) == (50, "guards.pause_seconds")
    # What a pause took says nothing about steps, and a first time, 41 seconds here, asks for no more than itself.
    progress.begin(4)
    assert (seconds_until_over(patience, progress), patience.setting) == (41, "guards.stall_seconds")
    progress.mark("embed a batch of the evaluation")
    assert (seconds_until_over(Patience(settings), progress)) == 40
    progress.mark("read a batch of the evaluation", "data")
    progress.mark("embed a batch of the evaluation")
    assert (seconds_until_over(Patience(settings), progress)) == 30


@pytest.mark.parametrize(
    "data",
    [{}, {"read_timeout_seconds": 5, "read_retry_seconds": 0}, {"read_retries": 0}, {"read_timeout_seconds": 0.5}],
)
def test_a_batch_from_a_url_may_take_as_long_as_its_requests_may_be_repeated_and_a_local_one_no_longer_than_other_work(
    progress, data
):
    section = DataSection(train="https://host/shards", **data)
    allowed = section.read_timeout_seconds * (section.read_retries + 1) + sum(
        section.read_retry_seconds * 2**n for n in range(section.read_retries)
    )
    config = SimpleNamespace(data=section, guards=GuardsSection())
    remote, local = Patience(config.guards, longest_read(config)), Patience(config.guards)
    assert int(allowed) <= seconds_until_over(remote, progress) - 40 <= allowed + 1
    assert "data.read_timeout_seconds" in remote.setting
    assert seconds_until_over(local, progress) == 40
    # What else hangs is noticed as early as with local data, although a batch has taken longer before.
    progress.phase("embed")
    assert seconds_until_over(remote, progress) == 40


def test_a_rank_that_hangs_and_will_soon_be_killed_tells_it_before_unless_it_saves(progress):
    patience = Patience(GuardsSection())
    assert next(second for second in range(100) if patience.is_over(progress, 1.0, urgent=True)) == 20
    assert patience.setting == "after the order to stop"
    progress.mark("save a checkpoint", "pause")
    assert not any(patience.is_over(progress, 1.0, urgent=True) for _ in range(1000))


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
    ids=[
        "behind in the step",
        "behind by a step",
        "the only one that waits for nobody",
        "cannot say where it is",
        "all wait",
    ],
)
def test_the_rank_that_holds_the_others_up_is_found_from_all_signs(signs, blamed):
    assert blame(dict(enumerate(signs))) == blamed
