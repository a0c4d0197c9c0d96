"""Shards written by Apache Beam, for a cluster whose machines share the destination's disk.

Its workers do what the processes of one machine do, file by file, so the shards are the
same and a run that was killed is gone on with in either way.
"""

import pickle
import shlex
from collections.abc import Sequence
from pathlib import Path

from data import staging
from hvp_jax.errors import BadData, BadUse


def finish_all(tasks: Sequence[staging.Task], options: str) -> None:
    """Finishes all tasks on the runner that `options`, as on a command line, tell of.

    Raises BadUse if Beam is not installed, BadData where a clip cannot be decoded.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise BadUse(
            "data.beam_options needs Apache Beam: pip install -r requirements-beam.txt"
        ) from error
    with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
        # Pickled here: Beam would take a named tuple for a row of a table.
        sent = pipeline | beam.Create([pickle.dumps(task) for task in tasks])
        _ = sent | beam.Reshuffle() | beam.Map(_finish)
    for task in tasks:
        if (note := _refusal(task)).exists():
            raise BadData(note.read_text())


def _refusal(task: staging.Task) -> Path:
    return task.folder / f"{task.name}.refused.partial"


def _finish(sent: bytes) -> None:
    task = pickle.loads(sent)  # of our own making, on its way between two workers
    try:
        staging.finish(task)
    except BadData as error:  # raised, Beam would try again and bury its message
        _refusal(task).write_text(str(error))
