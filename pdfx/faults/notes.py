"""Notes that launchers read."""

import json
import os


def leave_note(text: str, when: float) -> None:
    """Give ``torchrun``, which prints a summary of what failed first, this rank's error for it. Other launchers take
    none.

    Args:
        when: seconds of the clock at which the rank failed; it may have waited for others since.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    note = {"message": text.strip().splitlines()[-1], "extraInfo": {"py_callstack": text, "timestamp": str(int(when))}}
    try:
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"message": note}, stream)
    except OSError:
        # The same text stands in the log.
        return
