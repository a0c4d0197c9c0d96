"""Batches that worker processes read."""

import contextlib
import re
import signal
from typing import Any

import grain
from absl import flags

from data.batches import frame_sources, shared_memory
from data.batches.batch import TrainBatch
from data.errors import DataError
from data.worker_process import ending

WORKER_DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # Grain's message


def with_workers(dataset: grain.IterDataset, workers: int) -> grain.DatasetIterator[TrainBatch]:
    """Iterates over a data set whose items `workers` processes compute."""
    # Grain reads absl flags when it starts processes; they may not have been parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers)
    return _WorkerBatches(iter(dataset.mp_prefetch(options, _init_worker)))


class _WorkerBatches(grain.DatasetIterator):
    """The batches of worker processes; raises DataError if a worker dies."""

    def __init__(self, batches: grain.DatasetIterator[TrainBatch]):
        super().__init__(batches)
        self._batches = batches

    def __next__(self) -> TrainBatch:
        try:
            return next(self._batches)
        except RuntimeError as error:
            if not (match := WORKER_DIED.search(str(error))):
                raise
            raise DataError(_death_message(int(match[1]))) from None

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        # Grain joins a worker that could not start too; the reason has been raised already.
        with contextlib.suppress(AssertionError):
            self._batches.close()


def _death_message(code: int) -> str:
    resume = "the same command resumes from the last checkpoint"
    if code == -signal.SIGBUS:
        return (
            "a worker process that reads batches died (SIGBUS), which happens when shared memory "
            f"is full: {shared_memory.enlarge()}; {resume}"
        )
    if code == -signal.SIGKILL:
        return (
            "a worker process that reads batches was killed (SIGKILL), possibly because memory "
            f"ran out: {resume}; if it happens again, reduce data.workers"
        )
    return (
        f"a worker process that reads batches died ({ending(code)}): {resume}; if it happens "
        "again, `doctor` finds files that crash the decoder"
    )


def _init_worker(worker: int, workers: int) -> None:
    """Workers ignore Ctrl-C, which they receive too: the parent process decides when to stop."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    frame_sources.share_cores(workers)
