"""Stopping a run in order: a signal asks for it, a checkpoint is saved, and the exit code says that the same command goes on from there."""

import signal

EXIT_STOPPED = 75
"""Exit code of a run that saved a checkpoint and stopped because it was told to (SIGTERM or SIGUSR1); the same command goes on from there.

DeepSpeed's launcher hands SIGTERM on to its ranks, waits 30 s for each of them, and then exits with 1 whatever they say.
"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that this process was asked to stop.

    Args:
        signals: that ask for it.
    """

    def __init__(self, *signals: signal.Signals):
        self.asked = False
        self.listen(*signals or STOP_SIGNALS)

    def listen(self, *signals: signal.Signals) -> None:
        """From now on also to these."""
        for number in signals:
            signal.signal(number, self._ask)

    def _ask(self, *_) -> None:
        self.asked = True
