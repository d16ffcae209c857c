"""Each reader, on each file that lies about its kind or size, ends with one sentence, within a bound of memory and of
time."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[tuple[str, str, str, str]]:
    """(case, reader, what became of it, sentence) of everything, from one process of its own, because limits are those
    of processes."""
    folder = tmp_path_factory.mktemp("hostile")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        # DeepSpeed would print which one it chose among the outcomes.
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "malformed.hostile", folder],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_reader_ends_with_a_sentence_about_every_hostile_file(outcomes):
    assert len(outcomes) > 300
    assert [outcome for outcome in outcomes if outcome[2] not in ("refused", "found")] == []
    wrong = [
        outcome for outcome in outcomes if not 10 < len(outcome[3]) < 700 or "\n" in outcome[3] or "Errno" in outcome[3]
    ]
    assert [outcome for outcome in wrong if outcome[0] != "lock"] == []
