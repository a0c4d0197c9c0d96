"""Shards written by Apache Beam, for a cluster whose machines share the destination's disk.

Its workers do what the processes of one machine do, file by file, so the shards are the
same and a run that was killed is gone on with in either way.
"""

import json
import pickle
import shlex
import threading
from collections.abc import Sequence
from pathlib import Path

from data.errors import UsageError
from data.records import Broken
from data.shards import writer
from data.video import inspection
from data.worker_pool import IsolatedProcess


def write_shards(tasks: Sequence[writer.ShardTask], options: str) -> list[Broken]:
    """Finishes all tasks on the runner that `options`, as on a command line, tell of.

    Returns all clips that are broken, as `staging.finish_all`. Raises UsageError if Beam is not
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
        # Pickled here: Beam would take a named tuple for a row of a table.
        sent = pipeline | beam.Create([pickle.dumps(task) for task in tasks])
        _ = sent | beam.Reshuffle() | beam.Map(_finish)
    notes = [note for task in tasks if (note := _note(task)).exists()]
    return [Broken(*broken) for note in notes for broken in json.loads(note.read_text())]


def _note(task: writer.ShardTask) -> Path:
    return task.folder / f"{task.name}.broken.partial"


_kept = threading.local()  # of a thread of a worker: the process that decodes for it


def _finish(sent: bytes) -> None:
    task = pickle.loads(sent)  # of our own making, on its way between two workers
    if not hasattr(_kept, "guard"):
        _kept.guard = IsolatedProcess(inspection.decode_checked)
    if broken := writer.write_shard(task, _kept.guard.each):
        _note(task).write_text(json.dumps(broken))
