"""Shards written by Apache Beam, on a cluster whose machines share a disk, or from and to a bucket.

Beam workers do what the processes of a single machine do, file by file. So the shards are the
same, and either way can finish what the other began.
"""

import json
import pickle
import shlex
import threading
from collections.abc import Sequence

from data.errors import DataError, UsageError, UserError
from data.records import Broken
from data.shards import writer
from data.shards.staging import names_in
from data.storage import files as storage
from data.video import inspection
from data.worker_pool import IsolatedProcess


def write_shards(tasks: Sequence[writer.ShardTask], options: str) -> list[Broken]:
    """Writes all shards with the Beam runner given by `options`, as on a command line.

    Returns all broken clips, as `writer.write_shards` does. Raises UsageError if Beam is not
    installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UsageError(
            "data.beam_options needs Apache Beam: pip install -r requirements-beam.txt"
        ) from error
    with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
        # Pickled here, because Beam would turn a NamedTuple into a row of a table.
        pickled = pipeline | beam.Create([pickle.dumps(task) for task in tasks])
        _ = pickled | beam.Reshuffle() | beam.Map(_write_shard)
    folder = tasks[0].staging.folder
    left = set(names_in(folder))
    for task in tasks:
        if (name := task.name + FAILED) in left:
            raise DataError(storage.read_text(folder / name))
    files = [folder / name for task in tasks if (name := task.name + BROKEN) in left]
    return [Broken(*broken) for file in files for broken in json.loads(storage.read_text(file))]


# What workers leave in the staging folder beside finished shards.
BROKEN = ".broken.partial"  # the broken clips of a shard
FAILED = ".failed.partial"  # why a shard could not be written

_thread = threading.local()  # each thread of a Beam worker has a decoding process of its own


def _write_shard(pickled: bytes) -> None:
    task = pickle.loads(pickled)  # pickled above, so it is safe to load
    if not hasattr(_thread, "decoder"):
        _thread.decoder = IsolatedProcess(inspection.decode_checked)
    folder = task.staging.folder
    try:
        if broken := writer.write_shard(task, _thread.decoder.each):
            storage.write_bytes(folder / f"{task.name}{BROKEN}", json.dumps(broken).encode())
    except (UserError, OSError) as error:  # Beam would make a traceback of it
        storage.write_bytes(folder / f"{task.name}{FAILED}", str(error).encode())
