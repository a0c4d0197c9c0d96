"""Writes TensorBoard event files without TensorFlow."""

import os
import socket
import struct
import sys
import time
from typing import Any

from data.storage import files as storage
from data.storage.path import Path, is_bucket
from hvp_jax.monitoring.metric_rows.parts import Parts


class TensorBoardWriter:
    """Writes the numbers of rows as scalars to a new event file in `folder`, which it creates.

    TensorBoard drops what earlier files hold from step `purge` on. Each row is on disk when `write`
    returns; a bucket has it after `flush`, in as many event files as it takes. The SummaryWriter
    of tensorboardX is not used, because its writer thread dies if the disk is full, and it then
    waits for that thread for ever.

    Raises OSError, as do `write` and `flush`, if writing fails.
    """

    def __init__(self, folder: str | os.PathLike, purge: int):
        Path(folder).mkdir(exist_ok=True)
        event_file_writer, self._event, self._summary = _tensorboardx()
        # TensorBoard reads files in the order of their names, which hold the time in seconds. The
        # count distinguishes and orders two runs within a second.
        count = _count(folder)
        self._parts = _EventsInParts(folder, count) if is_bucket(folder) else None
        if not self._parts:
            prefix = os.path.join(folder, "events")
            self._writer = event_file_writer.EventsWriter(prefix, filename_suffix=f".{count:06}")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._put(purge, session_log=start)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One scalar for each number in `row`, named as by `scalars`; other values are omitted."""
        values = [{"tag": tag, "simple_value": x} for tag, x in scalars(row).items()]
        self._put(step, summary=self._summary.Summary(value=values))

    def flush(self) -> None:
        """Returns when all rows are where TensorBoard reads them."""
        if self._parts:
            self._parts.flush()

    def close(self) -> None:
        (self._parts or self._writer).close()

    def _put(self, step: int, **event: Any) -> None:
        put = self._event.Event(wall_time=time.time(), step=step, **event)
        if self._parts:
            self._parts.write_event(put)
        else:
            self._writer.write_event(put)
            self._writer.flush()


class _EventsInParts:
    """Event files in a bucket, each one of a bounded size."""

    def __init__(self, folder: str | os.PathLike, count: int):
        self._parts = Parts(Path(folder))
        self._parts.__enter__()
        self._count = count

    def write_event(self, event: Any) -> None:
        if self._parts.needs_name():
            now = time.time()
            name = f"events.out.tfevents.{int(now):010}.{socket.gethostname()}.{self._count:06}"
            self._parts.begin(name)
            self._count += 1
            self._parts.append(_record(type(event)(wall_time=now, file_version="brain.Event:2")))
        self._parts.append(_record(event))

    def flush(self) -> None:
        self._parts.flush()

    def close(self) -> None:
        self._parts.__exit__()


def _record(event: Any) -> bytes:
    """An event as a record of TFRecord: its length and content, each with a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def _count(folder: str | os.PathLike) -> int:
    """How many event files there are."""
    try:
        return sum(name.startswith("events.") for name in storage.names(folder))
    except FileNotFoundError:  # in a bucket, before the first
        return 0


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
    on a GPU loads a second set of CUDA libraries. Its clients of buckets take another.
    """
    modules: dict[str, Any] = sys.modules
    hidden = {"torch", "boto3", "google.cloud.storage"} - modules.keys()
    modules |= dict.fromkeys(hidden)  # makes `import torch` raise ImportError
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        for name in hidden:
            del modules[name]
    return event_file_writer, event_pb2, summary_pb2
