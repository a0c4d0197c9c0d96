"""A trace of some steps of a run, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax


class StepProfiler:
    """Writes `folder`/plugins/profile/: what the host and the devices did in steps first to last.

    To be used in `with`, whose end ends the trace if it is still on. `steps` as of
    `parse`; with None it does nothing, as in processes that are to write nothing.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._on = folder, steps, False

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def step(self, at: int, pending: Any = ()) -> None:
        """To be called before step `at`, counted from 1; `pending`: arrays of the one before.

        Where the trace begins or ends it waits for them, since steps run on while the
        loop goes ahead. A run that goes on amid the steps to trace traces the rest.
        """
        wanted = self._steps is not None and self._steps[0] <= at <= self._steps[1]
        if wanted == self._on:
            return
        jax.block_until_ready(pending)
        if wanted:
            jax.profiler.start_trace(self._folder)
            self._on = True
        else:
            self._stop()

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
