"""Detects that a run hangs, reports which process is behind, and ends this one.

A process that waits for one that hangs would wait for ever, and its machine with it. Once ended,
the run can be started again and resumes from its last checkpoint.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from typing import NoReturn

from data.storage import files as storage
from data.storage.path import Path, is_bucket

CHECK_INTERVAL = 5.0  # seconds between checks, at most
BUCKET_INTERVAL = 30.0  # the same in a bucket, where every status costs a request
WAITING_FOR_DEVICES = "waiting for the devices"


class Watchdog:
    """A thread that ends this process `seconds` after its last heartbeat; with 0, never.

    With several processes, each writes its step and activity to a status file in `folder`, which
    all of them can read. To be used in `with`.
    """

    def __init__(self, folder: Path, seconds: float, process: int = 0, processes: int = 1):
        self._folder, self._seconds = folder, seconds
        self._process, self._processes = process, processes
        self._last = (time.monotonic(), 0, "starting")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self, step: int, doing: str) -> None:
        """Reports that the run is alive and what it does next; call it before what may hang."""
        self._last = (time.monotonic(), step, doing)

    def keep_alive(self) -> None:
        """A heartbeat in the midst of the activity that the last one named."""
        self.heartbeat(*self._last[1:])

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()
            with contextlib.suppress(OSError):  # of a bucket
                storage.remove(self._status_path(self._process))

    def _status_path(self, process: int) -> Path:
        return self._folder / f"process_{process}.json"

    def _watch(self) -> None:
        longest = BUCKET_INTERVAL if is_bucket(self._folder) else CHECK_INTERVAL
        interval = min(longest, self._seconds / 4)
        while not self._done.wait(interval):
            since, step, doing = self._last
            if self._processes > 1:
                self._write_status(step, doing)
            if time.monotonic() - since > self._seconds:
                time.sleep(interval)  # until the other processes have written their status
                self._end_process(step, doing)

    def _end_process(self, step: int, doing: str) -> NoReturn:
        print(f"error: {self._report(step, doing)}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(1)

    def _write_status(self, step: int, doing: str) -> None:
        try:
            storage.make_folder(self._folder)
            status = json.dumps({"step": step, "doing": doing})
            storage.write_bytes(self._status_path(self._process), status.encode())
        except OSError:
            pass  # if the disk is full, saving a checkpoint reports it

    def _report(self, step: int, doing: str) -> str:
        """One line: the step of this process, which processes are behind, and what to do."""
        statuses = {self._process: (step, doing)}
        for process in range(self._processes):
            try:
                status = json.loads(storage.read_text(self._status_path(process)))
                statuses[process] = status["step"], status["doing"]
            except (OSError, ValueError):
                statuses.setdefault(process, (-1, "ended, or never started"))
        # A process that waits for the devices waits for other processes. Of those at the lowest
        # step, the ones that do something else are what it waits for.
        lowest = min(step for step, _ in statuses.values())
        behind = {p: doing for p, (step, doing) in statuses.items() if step == lowest}
        behind = {p: doing for p, doing in behind.items() if doing != WAITING_FOR_DEVICES} or behind
        processes = ", ".join(f"process {p} ({doing})" for p, doing in behind.items())
        return (
            f"no progress for {self._seconds:g} s at step {step}; stuck: {processes}. "
            "Run the same command again to resume from the last checkpoint"
        )
