"""Notices that a run hangs, says which process is behind, and ends it.

A process of many that waits for one that hangs would wait for ever, and so would the
machines it runs on. Ended, it can be started again and goes on from its checkpoint.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path

CHECK_INTERVAL = 5.0  # seconds between looks
WAITING_FOR_DEVICES = "waiting for the devices"


class Watchdog:
    """A thread that ends this process when nothing has been noted for `seconds`; 0: never.

    Where there are several processes, each leaves a note of what it is at in `folder`,
    which all of them see. To be used in `with`.
    """

    def __init__(self, folder: Path, seconds: float, process: int = 0, processes: int = 1):
        self._folder, self._seconds = folder, seconds
        self._process, self._processes = process, processes
        self._last = (time.monotonic(), 0, "starting")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def heartbeat(self, step: int, doing: str) -> None:
        """The run is alive, and what it does next: call it before whatever may hang."""
        self._last = (time.monotonic(), step, doing)

    def keep_alive(self) -> None:
        """The run is alive, and goes on with what it said it does."""
        self.heartbeat(*self._last[1:])

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()
            self._path(self._process).unlink(missing_ok=True)

    def _path(self, process: int) -> Path:
        return self._folder / f"process_{process}.json"

    def _look(self) -> None:
        while not self._done.wait(min(CHECK_INTERVAL, self._seconds / 4)):
            since, step, doing = self._last
            if self._processes > 1:
                self._leave_note(step, doing)
            if time.monotonic() - since > self._seconds:
                # A moment, so that the notes of all who wait are there.
                time.sleep(min(CHECK_INTERVAL, self._seconds / 4))
                print(f"error: {self._verdict(step, doing)}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr)
                os._exit(1)

    def _leave_note(self, step: int, doing: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = self._path(self._process).with_suffix(".tmp")
            beside.write_text(json.dumps({"step": step, "doing": doing}))
            beside.replace(self._path(self._process))
        except OSError:
            pass  # a full disk is for the checkpoint to tell of

    def _verdict(self, step: int, doing: str) -> str:
        """One line: where this process is, who is behind, and what to do."""
        notes = {self._process: {"step": step, "doing": doing}}
        for process in range(self._processes):
            try:
                notes[process] = json.loads(self._path(process).read_text())
            except (OSError, ValueError):
                notes.setdefault(process, {"step": -1, "doing": "gone, or never there"})
        # Whoever waits for the devices waits for others; those who do not are what it waits for.
        first = min(note["step"] for note in notes.values())
        behind = {p: n for p, n in notes.items() if n["step"] == first}
        behind = {p: n for p, n in behind.items() if n["doing"] != WAITING_FOR_DEVICES} or behind
        told = ", ".join(f"process {p} ({n['doing']})" for p, n in behind.items())
        return (
            f"nothing has moved for {self._seconds:g} s at step {step}; it hangs in {told}. "
            "The same command goes on from the last checkpoint"
        )
