"""TensorBoard's event files, written without TensorFlow."""

import os
import sys
import time
from pathlib import Path
from typing import Any


class TensorBoardWriter:
    """Writes the numbers of rows as scalars to a new event file in `folder`, which it makes.

    A reader drops what files of before hold from step `purge` on. Each row is on disk
    when `write` returns: tensorboardX's own SummaryWriter hands rows to a thread that
    dies when the disk is full, and then waits for it for ever.

    Raises OSError, as does `write`, if that cannot be done.
    """

    def __init__(self, folder: str | os.PathLike, purge: int):
        Path(folder).mkdir(exist_ok=True)
        event_file_writer, self._event, self._summary = _tensorboardx()
        # Readers go by name, which tells the second only: the count keeps two runs in
        # one second apart and in order.
        count = sum(name.startswith("events.") for name in os.listdir(folder))
        prefix = os.path.join(folder, "events")
        self._writer = event_file_writer.EventsWriter(prefix, filename_suffix=f".{count:06}")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._put(purge, session_log=start)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One scalar for each number of `row`, as `scalars` names it; others are left out."""
        values = [{"tag": tag, "simple_value": x} for tag, x in scalars(row).items()]
        self._put(step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _put(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()


def scalars(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"test/R@1": 50.0, ...}: the numbers of nested dicts, by their keys joined with "/"."""
    found = {}
    for key, value in row.items():
        if hasattr(value, "tolist"):  # scalars of NumPy and JAX
            value = value.tolist()
        if isinstance(value, dict):
            found |= scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def _tensorboardx() -> tuple[Any, Any, Any]:
    """Its modules of files, events and summaries.

    It imports PyTorch where that is installed, to take its tensors: seconds of time, and
    on a GPU a second set of CUDA libraries beside those of JAX. It is made to find none.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # what `import torch` then raises is ImportError
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_file_writer, event_pb2, summary_pb2
