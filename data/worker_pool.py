"""Runs jobs in processes of their own: damaged or malicious video files can make a decoder crash,
hang or use too much memory, which then ends only its own process.
"""

import itertools
import multiprocessing
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

from data.errors import DataError

SECONDS = 300  # for one file: one that takes longer to decode delays every epoch
MEMORY = 4 << 30  # bytes per process: enough for a few frames of the largest videos
POLL = 0.2  # seconds between two calls of `on_wait` while a job runs
READY = "ready"  # the first message of a process
START_TIMEOUT = 120  # seconds that a process may take to start


class Failed(NamedTuple):
    """The result of a job that did not finish."""

    reason: str


# Starting a process, like joining one, reaps all children that have ended: two threads must not
# do so at the same time.
_children_lock = threading.Lock()


class _Worker:
    """A process and its current job."""

    def __init__(self, work: Callable[[Any], Any], memory: int):
        # Spawned, not forked: the fork of a process with threads may deadlock.
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, memory, child_pipe), daemon=True)
        with _children_lock:
            self.process.start()
        child_pipe.close()
        self.job = 0
        self.is_ready, self.deadline = False, 0.0

    def submit(self, job: int, argument: Any, seconds: float) -> None:
        # The time limit of a job starts when the process is ready.
        timeout = seconds if self.is_ready else START_TIMEOUT
        self.job, self.deadline = job, time.monotonic() + timeout
        self.pipe.send(argument)

    def kill(self) -> None:
        self.process.kill()
        self.exitcode()
        self.pipe.close()

    def exitcode(self) -> int:
        """Waits for the process to end."""
        with _children_lock:
            self.process.join()
        assert self.process.exitcode is not None  # it was joined
        return self.process.exitcode


def run_isolated(
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    processes: int,
    seconds: float,
    memory: int,
) -> Iterator[tuple[int, Any]]:
    """Yields (index of the job, `work(job)` or Failed) once per job, in order of completion.

    `work` is a function at module level, run in at most `processes` processes; a job may take
    `seconds`, and a process may allocate `memory` bytes more than before its first job. An
    exception of `work` is a bug in this project and raised here as RuntimeError.
    """
    queue = iter(enumerate(jobs))
    workers: list[_Worker] = []
    try:
        for job, argument in itertools.islice(queue, processes):
            workers.append(_Worker(work, memory))
            workers[-1].submit(job, argument, seconds)
        while workers:
            timeout = min(worker.deadline for worker in workers) - time.monotonic()
            connection.wait([worker.pipe for worker in workers], max(timeout, 0))
            for worker in tuple(workers):
                result = _result(worker, seconds)
                if result is None:
                    continue
                yield worker.job, result
                following = next(queue, None)
                if isinstance(result, Failed) or following is None:
                    worker.kill()
                    workers.remove(worker)
                    if following is None:
                        continue
                    worker = _Worker(work, memory)
                    workers.append(worker)
                worker.submit(*following, seconds)
    finally:
        for worker in workers:
            worker.kill()


class IsolatedProcess:
    """A process that runs one job after another; if a job ends it, a new process replaces it.

    `work`, `seconds` and `memory` as in `run_isolated`. While a job runs, `on_wait` is called
    every `POLL` seconds and may raise. As a context manager it ends the process; until then one
    process serves several calls of `each`.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        on_wait: Callable[[], None] = lambda: None,
        seconds: float = SECONDS,
        memory: int = MEMORY,
    ):
        self._work, self._on_wait, self._seconds, self._memory = work, on_wait, seconds, memory
        self._worker: _Worker | None = None

    def __enter__(self) -> "IsolatedProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def each(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yields `work(job)` or Failed for each job in order; the next job runs meanwhile."""
        queue = iter(jobs)
        try:
            worker = self._submit_next(queue)
            while worker:
                result = self._wait(worker)
                worker = self._submit_next(queue)
                yield result
                del result  # frees its memory before the next one arrives
        except BaseException:  # the caller stopped early: the job in progress is not needed
            self._end()
            raise

    def _submit_next(self, queue: Iterator[Any]) -> _Worker | None:
        """The worker that runs the next job; None if there are no more."""
        for job in queue:
            self._worker = self._worker or _Worker(self._work, self._memory)
            self._worker.submit(0, job, self._seconds)
            return self._worker
        return None

    def _wait(self, worker: _Worker) -> Any:
        while (result := _result(worker, self._seconds)) is None:
            self._on_wait()
            timeout = worker.deadline - time.monotonic()
            connection.wait([worker.pipe], min(max(timeout, 0), POLL))
        if isinstance(result, Failed):
            self._end()
        return result

    def _end(self) -> None:
        if self._worker:
            self._worker.kill()
        self._worker = None


def _result(worker: _Worker, seconds: float) -> Any:
    """The result of the worker's job, or None while it runs."""
    if worker.pipe.poll():
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            how = ending(worker.exitcode())
            if not worker.is_ready:
                raise _not_started(how) from None
            if how == "SIGKILL":  # sent from outside: no decoder does this to itself
                return Failed("its decoder was killed (SIGKILL), perhaps because memory ran out")
            return Failed(f"crashes the decoder ({how})")
        if message == READY:
            worker.is_ready, worker.deadline = True, time.monotonic() + seconds
            return None
        result, bug = message
        if bug:
            raise bug
        return result
    if time.monotonic() < worker.deadline:
        return None
    if not worker.is_ready:
        raise _not_started(f"within {START_TIMEOUT} s")
    return Failed(f"takes the decoder more than {seconds:g} s")


def _not_started(how: str) -> Exception:
    if how.startswith("exit status"):  # it has printed a traceback
        return RuntimeError(f"a decoding process did not start ({how})")
    return DataError(f"a decoding process did not start ({how}); reduce data.workers")


def ending(code: int) -> str:
    """The exit code of a process in words: "SIGKILL" for -9."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def _serve(work: Callable[[Any], Any], memory: int, pipe: connection.Connection) -> None:
    """The main function of a worker process: receives jobs, sends (result, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent also receives it and ends this one
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _limit_memory(memory)
    pipe.send(READY)
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        bug = None
        try:
            result = work(argument)
        except MemoryError:
            result = Failed(f"needs more than {memory / 2**30:.3g} GiB of memory")
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
