"""Writes TensorBoard event files without TensorFlow."""

import os
import sys
import time
from typing import Any

from data.storage.path import Path


class TensorBoardWriter:
    """Writes the numbers of rows as scalars to a new event file in `folder`, which it creates.

    TensorBoard drops what earlier files hold from step `purge` on. Each row is on disk when `write`
    returns. The SummaryWriter of tensorboardX is not used, because its writer thread dies if the
    disk is full, and it then waits for that thread for ever.

    Raises OSError, as does `write`, if writing fails.
    """

    def __init__(self, folder: str | os.PathLike, purge: int):
        Path(folder).mkdir(exist_ok=True)
        event_file_writer, self._event, self._summary = _tensorboardx()
        # TensorBoard reads files in the order of their names, which hold the time in seconds. The
        # count distinguishes and orders two runs within a second.
        count = sum(name.startswith("events.") for name in os.listdir(folder))
        prefix = os.path.join(folder, "events")
        self._writer = event_file_writer.EventsWriter(prefix, filename_suffix=f".{count:06}")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._put(purge, session_log=start)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One scalar for each number in `row`, named as by `scalars`; other values are omitted."""
        values = [{"tag": tag, "simple_value": x} for tag, x in scalars(row).items()]
        self._put(step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _put(self, step: int, **event: Any) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **event))
        self._writer.flush()


def scalars(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested dicts, with keys joined by "/": {"test/R@1": 50.0, ...}."""
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if hasattr(value, "tolist"):  # NumPy and JAX scalars
            value = value.tolist()
        if isinstance(value, dict):
            numbers |= scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


def _tensorboardx() -> tuple[Any, Any, Any]:
    """The tensorboardX modules for files, events and summaries, imported without PyTorch.

    tensorboardX imports PyTorch if it is installed, to accept its tensors. That takes seconds, and
    on a GPU loads a second set of CUDA libraries.
    """
    modules: dict[str, Any] = sys.modules
    hidden = "torch" not in modules
    if hidden:
        modules["torch"] = None  # makes `import torch` raise ImportError
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        if hidden:
            del modules["torch"]
    return event_file_writer, event_pb2, summary_pb2
