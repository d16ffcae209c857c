"""What is printed: whatever the text, the encoding, the width, and whoever still reads it."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

from pdfx.cli.shared import ProgressBar
from pdfx.data.corrupt_samples import Coverage, coverage_table
from pdfx.host import console as console_module
from pdfx.telemetry.metrics import Telemetry

NASTY = [
    "news [/en]",
    "[bold]name",
    "a [red]b[/red]",
    "[",
    "[/]",
    ":smile: x",
    "[link=file:///etc]y[/link]",
    "naïve ✓",
    "\udcff.jpg",
]

PRINTS = """
import sys
from pdfx.host.console import open_streams, outlive_stdout
open_streams()
if sys.argv[1] == "lasting":
    outlive_stdout()
for number in range(20000):
    print("line", number)
sys.stdout.flush()
print("done", file=sys.stderr)
"""


def prints(kind: str, redirection: str) -> tuple[int, str]:
    """Exit code and stderr of a program that prints a lot, as tool or as a ``lasting`` run."""
    command = f'"{sys.executable}" -c "$PROGRAM" {kind} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PROGRAM": PRINTS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "redirection", "code", "told"),
    [
        ("tool", "| head -1", 141, ""),
        ("tool", "> /dev/full", 1, "OSError: [Errno 28] No space left on device: '<stdout>'"),
        ("tool", ">&-", 0, "done\n"),
        ("tool", "2>&-", 0, ""),
        ("tool", "> /dev/null 2> /dev/full", 0, ""),
        ("tool", "> /dev/null <&-", 0, "done\n"),
        (
            "lasting",
            "| head -1",
            0,
            "<stdout> can no longer be written to (Broken pipe); this process continues without it.\ndone\n",
        ),
        (
            "lasting",
            "> /dev/full",
            0,
            "<stdout> can no longer be written to (No space left on device); this process continues without "
            "it.\ndone\n",
        ),
        ("lasting", "2>&1 | head -1", 0, ""),
        ("lasting", ">&- 2>&-", 0, ""),
    ],
)
def test_a_lost_stream_ends_a_tool_as_it_ends_others_and_a_run_not_at_all(kind, redirection, code, told):
    ended, errors = prints(kind, redirection)
    assert ended == code
    assert errors == told or (told and told in errors.splitlines()[-1])


@pytest.mark.process
def test_a_file_that_is_opened_later_does_not_take_the_place_of_a_closed_stream(tmp_path):
    program = (
        f"from pdfx.host.console import *\nopen_streams()\nf = open({str(tmp_path / 'data')!r}, 'w')\nimport "
        "os; os.write(1, b'noise')\nprint('noise')"
    )
    command = f'"{sys.executable}" -c "$PROGRAM" <&- >&- 2>&-'
    assert (
        subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=os.environ | {"PROGRAM": program}, timeout=60, check=False
        ).returncode
        == 0
    )
    assert (tmp_path / "data").read_text() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("columns", ["1", "20", "200"])
@pytest.mark.parametrize("name", NASTY)
def test_names_reach_the_console_as_they_are_in_any_encoding_and_width(tmp_path, monkeypatch, encoding, columns, name):
    monkeypatch.setenv("COLUMNS", columns)
    # Printed through the streams that the commands print through.
    stream = (tmp_path / "out").open("w")
    monkeypatch.setattr(
        sys,
        "stdout",
        io.TextIOWrapper(
            io.BufferedWriter(console_module._Output(stream.fileno(), "<stdout>")), encoding, "backslashreplace"
        ),
    )
    telemetry = Telemetry(tmp_path, 3, 1, tensorboard=False)
    telemetry.say(f"{name} ✓")
    telemetry.log_coverage(1, {"epoch": 1.0}, Coverage([name], [3]).report([3]))
    telemetry.close()
    table = coverage_table(Coverage(["one"], [3]).report([3]), name)
    console_module.console(width=200).print(table)
    sys.stdout.flush()
    written = (tmp_path / "out").read_text(encoding)
    shown = name.encode(encoding, "backslashreplace").decode(encoding)
    assert written.startswith(shown)
    assert written.count(shown) >= (3 if columns == "200" else 2)


@pytest.mark.parametrize("name", NASTY[:-1])
def test_a_progress_bar_shows_names_as_they_are(monkeypatch, name):
    screen = io.StringIO()
    monkeypatch.setattr(
        "pdfx.cli.shared.console",
        lambda stderr: console_module.console(screen, force_terminal=True, color_system=None, width=200),
    )
    with ProgressBar() as bar:
        bar.counter(f"embedding {name}")(1, 2)
        bar.refresh()
    assert f"embedding {name}" in screen.getvalue()


def test_consoles_and_columns_that_would_read_markup_are_made_in_one_place_only():
    for path in [*ROOT.glob("pdfx/**/*.py"), *ROOT.glob("data_tools/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path != Path(console_module.__file__):
                assert node.func.id != "Console", path
                literal = (
                    node.func.id == "TextColumn"
                    and isinstance(node.args[0], ast.Constant)
                    and "{" not in node.args[0].value
                )
                assert (
                    node.func.id != "TextColumn" or literal or any(keyword.arg == "markup" for keyword in node.keywords)
                ), path


LAST = """
import os, threading, time
from pdfx.host.console import open_streams, print_last
open_streams()

def warn():
    while True:
        os.write(2, b"a warning of a library\\n")
        time.sleep(0.001)

threading.Thread(target=warn, daemon=True).start()
time.sleep(0.05)
print_last("the last entry \\udcff")
time.sleep(0.05)
os._exit(3)
"""


@pytest.mark.process
def test_nothing_is_written_below_the_last_entry():
    done = subprocess.run([sys.executable, "-c", LAST], cwd=ROOT, capture_output=True, text=True, timeout=60)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 3 and last == "the last entry \\udcff"
    assert before and set(before) == {"a warning of a library"}
