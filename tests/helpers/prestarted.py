"""Starts `run.py` many times without the seconds that it takes to import its modules.

A process that has imported them makes a copy of itself for each command. A copy is a process of its
own, which executes run.py with its arguments and ends, or is killed, as any other. Neither JAX nor
a file system has been used before, so that there are no threads or connections to inherit.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvp_jax.monitoring import tensorboard
from tests.helpers.command import COMPILED, ROOT, Finished

# What the verbs import, and what they import later.
MODULES = [f"hvp_jax.cli.verbs.{verb}" for verb in ("train", "evaluate", "prepare", "report")]
MODULES += ["data.storage.gcs", "google.cloud.storage", "matplotlib.pyplot"]
MODULES += ["array_record.python.array_record_data_source"]
ONE_CORE = {"JAX_NUM_CPU_DEVICES": "1", "OPENBLAS_NUM_THREADS": "1"}
TIMEOUT = 300.0  # seconds of a command


class Prestarted:
    """The process that is copied, with the environment and one CPU device. To be used in `with`."""

    def __init__(self, folder: Path, **environment: str):
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.prestarted"],
            cwd=ROOT,
            env=os.environ | COMPILED | ONE_CORE | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Prestarted":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    def start(self, *arguments: str | os.PathLike) -> "Command":
        """Starts `run.py` with these arguments."""
        self._count += 1
        prefix = str(self._folder / str(self._count))
        pid = self.ask("start", [prefix, *map(str, arguments)])
        return Command(self, pid, prefix)

    def ask(self, what: str, about: int | list[str]) -> Any:
        """What the process answers: the number of a new process, or the status of an ended one."""
        assert self._server.stdin and self._server.stdout
        print(json.dumps([what, about]), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


class Command:
    """A started command. Its output is in files."""

    def __init__(self, server: Prestarted, pid: int, prefix: str):
        self._server, self._pid, self._prefix = server, pid, prefix
        self._status: int | None = None

    def kill(self) -> None:
        """Sends SIGKILL, unless it has been waited for."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> Finished:
        """Waits until it has ended: its status, negative after a signal, and what it printed."""
        end = time.monotonic() + TIMEOUT
        while self._status is None:
            self._status = self._server.ask("status", self._pid)
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.01)
        texts = [Path(self._prefix + end).read_text() for end in (".out", ".err")]
        return Finished(self._status, *texts)


def _serve() -> None:
    """Answers requests; returns in a copy, to be the command."""
    for line in sys.stdin:
        what, about = json.loads(line)
        if what == "start":
            answer = os.fork()
            if answer == 0:
                return _become(*about)
        else:
            ended, status = os.waitpid(about, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)
    raise SystemExit


def _become(prefix: str, *arguments: str) -> None:
    for descriptor, path in ((0, os.devnull), (1, f"{prefix}.out"), (2, f"{prefix}.err")):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["run.py", *arguments]


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    tensorboard._tensorboardx()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, threads  # a copy has the calling thread only


if __name__ == "__main__":
    _import(MODULES)
    _serve()
    runpy.run_path("run.py", run_name="__main__")
