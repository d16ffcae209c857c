from pdfx.cli.shared import ProgressBar


def test_what_was_done_before_enters_no_rate():
    bar = ProgressBar()
    count = bar.counter("packing")
    count(1_000_000, 2_000_000)
    task = bar.tasks[0]
    assert (task.completed, task.total, task.speed) == (1_000_000, 2_000_000, None)
    with bar:
        count(2_000_000, 2_000_000)
    assert task.completed == 2_000_000


def test_the_last_item_is_shown_however_soon_it_comes():
    bar = ProgressBar()
    count = bar.counter("packing")
    for done in range(4):
        count(done, 3)
    assert bar.tasks[0].completed == 3


def test_the_number_in_all_may_be_unknown():
    bar = ProgressBar()
    bar.counter("packing")(5, None)
    assert (bar.tasks[0].completed, bar.tasks[0].total) == (5, None)
    assert "5/?" in str(bar.columns[2].render(bar.tasks[0])) and str(bar.columns[3].render(bar.tasks[0])) == ""
