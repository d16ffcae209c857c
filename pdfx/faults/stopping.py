"""Stopping a run in order: a signal asks, a checkpoint is saved, and the exit code says that the command resumes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

EXIT_STOPPED = 75
"""Exit code of a run that saved a checkpoint and stopped on request (see ``STOP_SIGNALS``), or that had
nothing to save yet; the same command resumes from there.

DeepSpeed's launcher hands SIGTERM on to its ranks, waits 30 s for each of them, and then exits with 1 whatever they
say.
"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGHUP comes when a terminal is closed, and counts unless the process was started to ignore it (``nohup``)."""


class StopRequest:
    """Remembers that this process was asked to stop; made outside of the main thread, which alone gets signals, it
    never is. As a context manager, it gives the signals back to the handlers that they had.

    Attributes:
        asked: whether it was.
        urgent: whether by a signal that launchers and batch systems soon follow with SIGKILL.
        attended: whether someone looks at ``asked``; until then the process ends at once when it is asked, since there
            is nothing to save yet.
    """

    def __init__(self, attended: bool = True):
        self.asked, self.urgent, self.attended = False, False, attended
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        # Python calls handlers between two of its own instructions, which a main thread that hangs in C code never
        # reaches.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            # Launchers that ignore the others themselves hand that on.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda number, _: self._ask(number))
        self._listener = threading.Thread(target=self._listen, name="pdfx signals", daemon=True)
        self._listener.start()

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, *_) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        # Workers that were forked hold copies of the sockets, so closing them would not end the thread.
        self._writer.shutdown(socket.SHUT_RDWR)
        self._listener.join()

    def _listen(self) -> None:
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    self._ask(number)

    def _ask(self, number: int) -> None:
        self.urgent = self.urgent or number != signal.SIGUSR1
        self.asked = True
        if not self.attended:
            os._exit(EXIT_STOPPED)
