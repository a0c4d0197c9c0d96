"""What runs in a worker process: one job after the other, within limits."""

import multiprocessing
import os
import resource
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, NamedTuple

from data.errors import UserError

READY = "ready"  # the first message of a process


class Failed(NamedTuple):
    """The result of a job that did not finish."""

    reason: str


def ending(code: int) -> str:
    """The exit code of a process in words: "SIGKILL" for -9."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def serve(
    work: Callable[[Any], Any], memory: int, folder: str, pipe: connection.Connection
) -> None:
    """The main function of a worker process: receives jobs, sends (result, error).

    Its temporary files are in `folder`.
    """
    tempfile.tempdir = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent also receives it and ends this one
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _limit_memory(memory)
    pipe.send(READY)
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        bug: Exception | None = None
        try:
            result = work(argument)
        except MemoryError:
            result = Failed(f"needs more than {memory / 2**30:.3g} GiB of memory")
        except UserError as error:
            result, bug = None, error
        except Exception as error:
            result, bug = None, RuntimeError(f"{type(error).__name__}: {error} (at {argument!r})")
            bug.add_note(traceback.format_exc())  # pickling keeps the note, not the traceback
        pipe.send((result, bug))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker process
    parent.join()
    os._exit(1)


def _limit_memory(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected: no core dumps
    if not os.path.exists("/proc/self/statm"):
        return  # only Linux enforces this limit
    # Address space that libraries have reserved (a lot on machines with many cores) is not counted.
    with open("/proc/self/statm") as file:
        limit = memory + int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
