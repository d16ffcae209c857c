"""Every command whose output finds no room: one sentence that names it, exit code 2, and nothing half written is
left."""

import json
import os
import sys
from pathlib import Path

import pytest
import warm
from tiny_exports import tiny_export
from tiny_runs import ROOT, tiny_shards

pytestmark = pytest.mark.process

ROOM = 2**10
"""Bytes that a file may have: less than any of the results, so that each fails while it is written."""

CHILD = f"""
import contextlib, io, json, resource, sys
from pdfx.cli.app import main
import pdfx.evaluate.embed, data_tools.build.builder, data_tools.rearrange.merge, data_tools.rearrange.split
import data_tools.inspect.describe, data_tools.inspect.contact_sheet, data_tools.inspect.measure
# It unpacks a model into a temporary file, once.
data_tools.inspect.measure.language_of("a text that is long enough to be judged")
resource.setrlimit(resource.RLIMIT_FSIZE, ({ROOM}, {ROOM}))
outcomes = []
for arguments in json.load(sys.stdin):
    code = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    outcomes.append((code, errors.getvalue()))
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """By command: exit code, stderr, and the folder that was to hold its output; all run in one process, so that it
    imports once."""
    folder = tmp_path_factory.mktemp("full")
    shards, export = tiny_shards(folder), tiny_export(folder / "model")
    items = folder / "items.jsonl"
    items.write_text("".join(f'{{"text": "number {i}"}}\n' for i in range(40)))
    outs = {
        name: folder / "out" / name
        for name in ("embed", "embed2", "merge", "split", "build", "describe", "sheet", "evaluate")
    }
    for out in outs.values():
        out.mkdir(parents=True)
    commands = {
        "embed": ["embed", export, items, "--out", outs["embed"] / "rows.npy"],
        "embed2": ["embed", export, items, "--out", outs["embed2"] / "rows.safetensors"],
        "merge": ["shards", "merge", shards, "--out", outs["merge"] / "all"],
        "split": ["shards", "split", shards, "--out", f"{outs['split']}/a=0.5", "--out", f"{outs['split']}/b=0.5"],
        "build": ["shards", "build", folder / "records.jsonl", "--out", outs["build"] / "shards", "--workers", "0"],
        "describe": ["shards", "describe", shards, "--workers", "0", "--json", outs["describe"] / "all.json"],
        "sheet": ["shards", "describe", shards, "--workers", "0", "--contact-sheet", outs["sheet"] / "pairs.html"],
        "evaluate": ["evaluate", export, shards, "--json", outs["evaluate"] / "metrics.json"],
    }
    given = json.dumps([[str(word) for word in words] for words in commands.values()])
    done = warm.run(
        [sys.executable, "-c", CHILD],
        input=given,
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: (code, errors, outs[name]) for name, (code, errors) in zip(commands, results, strict=True)}


@pytest.mark.parametrize("command", ["embed", "embed2", "merge", "split", "build", "describe", "sheet", "evaluate"])
def test_a_command_that_finds_no_room_says_so_in_one_sentence_and_leaves_nothing_behind(outcomes, command):
    code, errors, out = outcomes[command]
    assert code == 2, errors
    assert str(out) in errors.splitlines()[-1] and "Traceback" not in errors
    assert any(words in errors for words in ("File too large", "could not be written whole"))
    left = [path for path in out.rglob("*") if path.is_file()]
    # A build that is started again resumes from what it leaves.
    assert not left or command == "build"
