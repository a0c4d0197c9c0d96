"""Runs jobs in processes of their own: damaged or malicious video files can make a decoder crash,
hang or use too much memory, which then ends only its own process.
"""

import itertools
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import is_bucket
from data.time_limit import TimeLimit
from data.worker_process import READY, Failed, ending, serve

SECONDS = 300  # of processor time for one file: one that takes longer delays every epoch
SECONDS_PER_MIB = 1  # and for its content, ten times what the densest videos need
LARGE = 1 << 30  # bytes, taken for the size of a file in a bucket, which is not asked for
MEMORY = 4 << 30  # bytes per process: enough for a few frames of the largest videos
POLL = 0.2  # seconds between two calls of `on_wait` while a job runs
START_TIMEOUT = 120  # seconds of processor time that a process may take to start


# Starting a process, like joining one, reaps all children that have ended: two threads must not
# do so at the same time.
_children_lock = threading.Lock()


class _Worker:
    """A process and its current job."""

    def __init__(self, work: Callable[[Any], Any], memory: int):
        # Spawned, not forked: the fork of a process with threads may deadlock.
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        # Removed by this process, since the other one may be killed.
        self._folder = tempfile.TemporaryDirectory()
        arguments = work, memory, self._folder.name, child_pipe
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with _children_lock:
            self.process.start()
        child_pipe.close()
        self.job = 0
        self.is_ready, self._seconds = False, 0.0
        self.limit(START_TIMEOUT)

    def submit(self, job: int, argument: Any, seconds: float) -> None:
        self.job, self._seconds = job, seconds + _seconds_for_content(argument)
        if self.is_ready:
            self.limit(self._seconds)
        self.pipe.send(argument)

    def limit(self, seconds: float) -> None:
        assert self.process.pid is not None  # it was started
        self.time_limit = TimeLimit(self.process.pid, seconds)

    def ready(self) -> None:
        """The time limit of a job starts when the process is ready."""
        self.is_ready = True
        self.limit(self._seconds)

    def kill(self) -> None:
        self.process.kill()
        self.exitcode()
        self.pipe.close()
        self._folder.cleanup()

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

    `work` is a function at module level, run in at most `processes` processes. A job may take
    `seconds` of processor time, and more for a large file at its `path`; a process may allocate
    `memory` bytes more than before its first job. A UserError of `work` is raised here too; any
    other exception is a bug in this project and raised as RuntimeError.
    """
    queue = iter(enumerate(jobs))
    workers: list[_Worker] = []
    try:
        for job, argument in itertools.islice(queue, processes):
            workers.append(_Worker(work, memory))
            workers[-1].submit(job, argument, seconds)
        while workers:
            timeout = min(worker.time_limit.remaining() for worker in workers)
            connection.wait([worker.pipe for worker in workers], max(timeout, POLL))
            for worker in tuple(workers):
                result = _result(worker)
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
        while (result := _result(worker)) is None:
            self._on_wait()
            connection.wait([worker.pipe], POLL)
        if isinstance(result, Failed):
            self._end()
        return result

    def _end(self) -> None:
        if self._worker:
            self._worker.kill()
        self._worker = None


def _seconds_for_content(argument: Any) -> float:
    try:
        path = argument.path
        size = LARGE if is_bucket(path) else storage.stat(path).size
    except (AttributeError, OSError):
        return 0.0
    return SECONDS_PER_MIB * size / 2**20


def _result(worker: _Worker) -> Any:
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
            worker.ready()
            return None
        result, bug = message
        if bug:
            raise bug
        return result
    if worker.time_limit.remaining():
        return None
    if not worker.is_ready:
        raise _not_started(f"within {START_TIMEOUT} s")
    return Failed(
        f"takes the decoder more than {worker.time_limit.seconds:.3g} s of processor time"
    )


def _not_started(how: str) -> Exception:
    if how.startswith("exit status"):  # it has printed a traceback
        return RuntimeError(f"a decoding process did not start ({how})")
    return DataError(f"a decoding process did not start ({how}); reduce data.workers")
