"""Work in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Runs ``work`` once; what it returns or raises is kept until it is asked for.

    Args:
        work: called without arguments.
        background: in a thread, which ends with the process; at once otherwise.
    """

    def __init__(self, work: Callable[[], Result], background: bool):
        self._work, self._value, self.error = work, None, None
        self._thread = threading.Thread(target=self._run, name="pdfx checkpoint", daemon=True) if background else None
        self._thread.start() if self._thread else self._run()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except Exception as error:
            # Raised when the result is asked for.
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when it is done."""
        if self._thread is not None:
            self._thread.join()

    @property
    def result(self) -> Result:
        """What it returned. Raises what it raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self._value
