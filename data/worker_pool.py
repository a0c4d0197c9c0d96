"""Processes that work on jobs one by one, and may crash, hang or ask for too much memory.

Files from elsewhere can do all three to a decoder. A job that does costs its own process
alone; another one takes its place.
"""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

SECONDS = 300  # for one file: what takes longer to decode once holds up every epoch
MEMORY = 4 << 30  # bytes, for one process: a few frames of the largest videos there are
POLL = 0.2  # seconds between two looks at what else there is to do while a job runs
UP = "up"  # what a process says first
START = 120  # seconds that a process may take to come up


class Failed(NamedTuple):
    """What comes of a job that was not finished."""

    reason: str


# A process that starts looks after all the others: threads must not do so at the same time.
_births = threading.Lock()


class _Worker:
    """A process and the job it is at."""

    def __init__(self, work: Callable, memory: int):
        # Spawned, not forked: a fork of a process with threads may never wake up.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, memory, theirs), daemon=True)
        with _births:
            self.process.start()
        theirs.close()
        self.job: int | None = None
        self.up, self.deadline = False, 0.0

    def begin(self, job: int, argument: Any, seconds: float) -> None:
        # A job's time does not pay for the start of its process.
        self.job, self.deadline = job, time.monotonic() + (seconds if self.up else START)
        self.pipe.send(argument)

    def kill(self) -> None:
        self.process.kill()
        self.exitcode()
        self.pipe.close()

    def exitcode(self) -> int:
        """That of the process, which has ended or is about to."""
        with _births:
            self.process.join()
            return self.process.exitcode


def run_isolated(
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    processes: int,
    seconds: float,
    memory: int,
) -> Iterator[tuple[int, Any]]:
    """(number of the job, `work(job)` or Failed) as they come, each job's once.

    `work` is a function of a module, run in at most `processes` at a time; a job may take
    `seconds`, and a process `memory` bytes above what it takes before its first job.
    An exception of `work` is a bug of ours: it is raised here, as RuntimeError.
    """
    waiting = iter(enumerate(jobs))
    workers: list[_Worker] = []
    try:
        for job, argument in _first(waiting, processes):
            workers.append(_Worker(work, memory))
            workers[-1].begin(job, argument, seconds)
        while workers:
            rest = min(worker.deadline for worker in workers) - time.monotonic()
            connection.wait([worker.pipe for worker in workers], max(rest, 0))
            for i, worker in enumerate(workers):
                result = _result(worker, seconds)
                if result is None:
                    continue
                yield worker.job, result
                following = next(waiting, None)
                if isinstance(result, Failed) or following is None:
                    worker.kill()
                    workers[i] = following and _Worker(work, memory)
                if following:
                    workers[i].begin(*following, seconds)
            workers = [worker for worker in workers if worker]
    finally:
        for worker in filter(None, workers):
            worker.kill()


class IsolatedProcess:
    """A process of its own for one job after the other; lost with a job, another takes its place.

    `work`, `seconds` and `memory` as in `run_each`. While one waits for a job, `beat` is
    called every moment, and may raise. Ends the process as a context manager; until then it
    is kept from one `each` to the next.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        beat: Callable[[], None] = lambda: None,
        seconds: float = SECONDS,
        memory: int = MEMORY,
    ):
        self._work, self._beat, self._seconds, self._memory = work, beat, seconds, memory
        self._worker: _Worker | None = None

    def __enter__(self) -> "IsolatedProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def each(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """`work(job)` or Failed of each job in turn; the next is begun before one is handed out."""
        waiting = iter(jobs)
        try:
            busy = self._begin(waiting)
            while busy:
                result = self._wait()
                busy = self._begin(waiting)
                yield result
                del result
        except BaseException:  # left before the end, with a job begun that nobody wants
            self._end()
            raise

    def _begin(self, waiting: Iterator) -> bool:
        for job in waiting:
            self._worker = self._worker or _Worker(self._work, self._memory)
            self._worker.begin(0, job, self._seconds)
            return True
        return False

    def _wait(self) -> Any:
        while (result := _result(self._worker, self._seconds)) is None:
            self._beat()
            rest = self._worker.deadline - time.monotonic()
            connection.wait([self._worker.pipe], min(max(rest, 0), POLL))
        if isinstance(result, Failed):
            self._end()
        return result

    def _end(self) -> None:
        if self._worker:
            self._worker.kill()
        self._worker = None


def _first(waiting: Iterator, count: int) -> Iterator:
    return (item for _, item in zip(range(count), waiting, strict=False))


def _result(worker: _Worker, seconds: float) -> Any:
    """What came of the worker's job, or None if it is still at it."""
    if worker.pipe.poll():
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            how = ending(worker.exitcode())
            if not worker.up:
                raise RuntimeError(f"a process does not come up ({how})") from None
            if how == "SIGKILL":  # no decoder does that to itself
                return Failed("its decoder was killed (SIGKILL), perhaps for want of memory")
            return Failed(f"crashes the decoder ({how})")
        if answer == UP:
            worker.up, worker.deadline = True, time.monotonic() + seconds
            return None
        result, trouble = answer
        if trouble:
            raise RuntimeError(trouble)
        return result
    if time.monotonic() < worker.deadline:
        return None
    if not worker.up:
        raise RuntimeError(f"a process does not come up within {START} s")
    return Failed(f"takes the decoder more than {seconds:g} s")


def ending(code: int) -> str:
    """The exit code of a process in words: of -9, "SIGKILL"."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
    except ValueError:
        return f"signal {-code}"


def _serve(work: Callable, memory: int, pipe: connection.Connection) -> None:
    """The whole life of a worker: receives a job, sends (result, trouble)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory(memory)
    pipe.send(UP)
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(argument), ""
        except MemoryError:
            answer = Failed(f"needs more than {memory / 2**30:.3g} GiB of memory"), ""
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error} (at {argument!r})"
        pipe.send(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _limit_memory(memory: int) -> None:
    # A crash here is an answer, not something to look into.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not os.path.exists("/proc/self/statm"):
        return  # not Linux, and no such limit there
    # What libraries have merely reserved (a lot on machines of many cores) is not counted.
    with open("/proc/self/statm") as file:
        reserved = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = reserved + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
