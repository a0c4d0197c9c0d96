"""A workdir for one run, which may have several processes."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from data.errors import UsageError
from data.storage.path import Path, PathLike
from hvp_jax.monitoring.workdir_lock import ADVICE, WorkdirLock
from hvp_jax.parallel.processes import broadcast_from_primary, broadcast_text, is_primary


@contextlib.contextmanager
def exclusive(workdir: PathLike, advice: str = ADVICE) -> Iterator[None]:
    """Holds the lock of a workdir, which process 0 takes for all processes of a run.

    Raises UsageError, in all of them, if another run holds it, which ends with `advice`, or if it
    cannot be written.
    """
    lock = WorkdirLock(Path(workdir), advice=advice)
    with _released_by_sigterm(lock):
        try:
            # One broadcast per attempt: a single one, minutes late, would time out elsewhere.
            while not broadcast_from_primary(is_primary() and lock.attempt()):
                time.sleep(lock.poll)
            if refusal := broadcast_text(lock.refusal):
                raise UsageError(refusal)
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def _released_by_sigterm(lock: WorkdirLock) -> Iterator[None]:
    """SIGTERM ends the process as usual, but releases the lock first."""

    def release_and_end(number: int, frame: FrameType | None) -> None:
        del frame
        lock.release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, release_and_end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
