"""Profiler traces of a run's steps, for TensorBoard or Perfetto."""

from typing import Any

import jax

from data.storage.path import Path


class StepProfiler:
    """Traces steps `steps[0]` to `steps[1]`, both included, to `folder`/plugins/profile/.

    To be used in `with`, whose end stops the trace if it is still active. With `steps` None it
    does nothing, as in processes that write no files.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._active = folder, steps, False

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
            jax.profiler.start_trace(self._folder)
            self._active = True
        else:
            self._stop()

    def _stop(self) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
