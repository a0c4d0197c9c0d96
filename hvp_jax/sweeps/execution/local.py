"""Runs on this machine, several at a time, each a process of its own."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from hvp_jax.sweeps.execution.progress import progress_bar, report
from hvp_jax.sweeps.execution.runs import Run, stop
from hvp_jax.sweeps.execution.stop import Stopped, StopSignal, stop_signal

POLL_INTERVAL = 0.1  # seconds

log = logging.getLogger(__name__)


def execute(runs: Sequence[Run], jobs: int) -> None:
    """Runs those that have not finished, in order, at most `jobs` at a time.

    A run that fails is recorded as failed, and the others go on. One whose workdir is in use, by
    an earlier sweep that was killed or by the user, is waited for. The first SIGINT or SIGTERM is
    passed on to the runs, which save and end, and then raises Stopped; a second one kills them.
    """
    pool = _Pool(runs, jobs)
    with pool.bar, stop_signal() as stopped:
        try:
            pool.loop(stopped)
        finally:  # after a bug
            pool.stop()
    if stopped.name:
        raise Stopped(stopped.name)


class _Pool:
    def __init__(self, runs: Sequence[Run], jobs: int):
        self._jobs = jobs
        self._pending = [run for run in runs if not run.is_finished()]
        self._running: list[tuple[Run, subprocess.Popen]] = []
        self._passed_on = 0  # signals
        self._waits: set[str] = set()  # the runs that wait for their workdir, as was logged
        self.bar = progress_bar(len(runs), len(runs) - len(self._pending))

    def loop(self, stopped: StopSignal) -> None:
        while self._running or (self._pending and not stopped.name):
            self._pass_on(stopped.count)
            for run, process in list(self._running):
                if process.poll() is not None:
                    self._running.remove((run, process))
                    # A run that was asked to stop has not failed: the next sweep resumes it.
                    if run.is_finished() or not stopped.name:
                        run.finish(process.returncode)
                        report(self.bar, run)
            while len(self._running) < self._jobs and not stopped.name:
                free = next((run for run in self._pending if self._is_free(run)), None)
                if free is None:
                    break
                self._pending.remove(free)
                if free.is_finished():  # by the process that it waited for
                    report(self.bar, free)
                else:
                    self._running.append((free, free.start()))
            time.sleep(POLL_INTERVAL)

    def _is_free(self, run: Run) -> bool:
        holder = run.holder()
        if holder and run.name not in self._waits:
            self._waits.add(run.name)
            log.warning("%s: waiting for %s, which works in its workdir", run.name, holder)
        return not holder

    def _pass_on(self, signals: int) -> None:
        """Passes on to the runs signals that have come since; here, as no run is just starting."""
        if signals > self._passed_on:
            self._passed_on = signals
            if signals == 1 and self._running:
                log.warning(
                    "stopping %d runs, which save first; once more to kill them", len(self._running)
                )
            if signals == 1:
                self.stop()
            else:
                self._kill()

    def stop(self) -> None:
        for _, process in self._running:
            stop(process)

    def _kill(self) -> None:
        """The runs, and the processes that read their data."""
        for _, process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
