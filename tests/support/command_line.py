"""Running ``pdfx`` in this process, because each command takes milliseconds and starting a process seconds."""

from __future__ import annotations

from pdfx.cli.app import main


def run_pdfx(capfd, *words) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capfd.readouterr()


def told(result: tuple[int, str, str]) -> str:
    """The sentence of a command that a user's mistake ended: exit code 2, nothing on stdout, one line on stderr."""
    code, out, error = result
    assert (code, out) == (2, "")
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]
