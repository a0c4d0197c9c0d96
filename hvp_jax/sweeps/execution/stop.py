"""SIGINT and SIGTERM while a sweep waits for its runs."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal has stopped the sweep; the argument is its name, and what goes on."""


class StopSignal:
    """How many signals have come, and the name of the first, "" before it."""

    def __init__(self) -> None:
        self.count, self.name = 0, ""

    def handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.count += 1
        self.name = self.name or signal.Signals(number).name


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Counts the signals in this context, which then have no other effect."""
    stopped = StopSignal()
    before = {number: signal.signal(number, stopped.handle) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
