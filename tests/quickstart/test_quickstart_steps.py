import sys

import pytest
import run as quickstart
from run import Step, fingerprint, steps

APPEND = (
    "import pathlib, sys; path = pathlib.Path('build/quickstart/out'); path.open('a').write('x'); "
    "sys.exit(int(sys.argv[1]))"
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    (tmp_path / "source.py").write_text("first")
    (tmp_path / quickstart.BUILD).mkdir(parents=True)
    return tmp_path


def written(root) -> str:
    return (root / quickstart.BUILD / "out").read_text()


def step(status: int = 0, resumes: bool = False) -> Step:
    return Step("A step", (sys.executable, "-c", APPEND, str(status)), "out", ("source.py",), resumes)


@pytest.mark.process
def test_a_finished_step_is_skipped_until_its_source_or_a_step_before_it_changes(root, capfd):
    for _ in range(2):
        assert quickstart.run(step(), fingerprint(step(), ""))
    assert written(root) == "x"
    assert "skipped" in capfd.readouterr().out
    assert fingerprint(step(), "another") != fingerprint(step(), "")
    before = fingerprint(step(), "")
    (root / "source.py").write_text("second")
    assert fingerprint(step(), "") != before
    assert quickstart.run(step(), fingerprint(step(), ""))
    assert written(root) == "x"
    assert "skipped" not in capfd.readouterr().out


@pytest.mark.process
@pytest.mark.parametrize(("resumes", "expected"), [(True, "xx"), (False, "x")])
def test_a_failed_step_is_told_and_only_one_that_resumes_keeps_what_it_left(root, capfd, resumes, expected):
    mark = fingerprint(step(3, resumes), "")
    assert not quickstart.run(step(3, resumes), mark)
    assert "exit status 3" in capfd.readouterr().err
    assert not quickstart.run(step(3, resumes), mark)
    assert written(root) == expected


@pytest.mark.process
def test_a_step_that_writes_nothing_has_failed():
    silent = Step("Nothing", (sys.executable, "-c", "pass"), "out", ("source.py",))
    assert not quickstart.run(silent, fingerprint(silent, ""))


def test_all_sources_of_the_real_steps_exist():
    root = quickstart.Path(quickstart.__file__).parents[2]
    for real in steps():
        for source in real.sources:
            assert (root / source).exists(), source
