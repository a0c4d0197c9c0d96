"""Profiler traces of a run's steps, for TensorBoard or Perfetto."""

import contextlib
import os
import tempfile
from typing import Any

import jax

from data.storage import files as storage
from data.storage.path import Path, PathLike, is_bucket


class StepProfiler:
    """Traces steps `steps[0]` to `steps[1]`, both included, to `folder`/plugins/profile/.

    To be used in `with`, whose end stops the trace if it is still active. With `steps` None it
    does nothing, as in processes that write no files. A bucket gets the trace when it is complete:
    the profiler itself writes to a disk.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._active = folder, steps, False
        self._stack = contextlib.ExitStack()  # removes the temporary folder of a bucket's trace

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def step(self, at: int, pending: Any = ()) -> None:
        """Call it before step `at`, counted from 1, with the arrays `pending` of the step before.

        Steps run asynchronously, so it waits for `pending` before the trace starts or stops. A run
        that resumes between `steps[0]` and `steps[1]` traces the rest.
        """
        wanted = self._steps is not None and self._steps[0] <= at <= self._steps[1]
        if wanted == self._active:
            return
        jax.block_until_ready(pending)
        if wanted:
            folder: PathLike = self._folder
            if is_bucket(folder):
                folder = self._stack.enter_context(tempfile.TemporaryDirectory())
                self._stack.callback(_upload_tree, folder, self._folder)
            jax.profiler.start_trace(folder)
            self._active = True
        else:
            self._stop()

    def _stop(self) -> None:
        if self._active:
            self._active = False
            with self._stack:
                jax.profiler.stop_trace()


def _upload_tree(source: str, destination: Path) -> None:
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            storage.upload(path, destination / os.path.relpath(path, source))
