"""A limit to waiting for a library that repeats its requests for much longer."""

import errno
import queue
import threading
from collections.abc import Callable
from typing import Any

from data.storage.faults import OUT_OF_REACH

# Seconds. gcsfs gives up after about 35, TensorStore as we set it after two minutes.
PATIENCE = 120.0


def answer(function: Callable[[], Any], path: str) -> Any:
    """The result of a function that reads from a bucket, or the error that it raises.

    Raises OSError if it takes longer than `PATIENCE`. It then goes on in a thread of its own, which
    does not keep the process from ending.
    """
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name="bucket", daemon=True).start()
    try:
        result, error = answers.get(timeout=PATIENCE)
    except queue.Empty:
        reason = f"{OUT_OF_REACH}: no answer for {PATIENCE:g} s"
        raise OSError(errno.ETIMEDOUT, reason, path) from None
    if error:
        raise error
    return result
