"""workdir/history/: when a run was started and when it ended, in a small file each.

A file is written once, so that it may be an object in a bucket. Of a run that was killed there is
only the start; the next start says how far it had come.
"""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import jax

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path, PathLike
from hvp_jax.monitoring import json_files, process_identity
from hvp_jax.monitoring.metric_rows.files import read_rows

FOLDER = "history"


class Start(NamedTuple):
    """A start after `step`, when `reached` was the last step that the run had logged before.

    Times are in UTC, as `process_identity.now` writes them; `ended` is None if it was killed.
    """

    step: int
    reached: int
    started: str
    host: str
    processes: int
    ended: str | None


@contextlib.contextmanager
def recorded(workdir: PathLike, step: int, *, writes: bool) -> Iterator[None]:
    """Records a start after `step` and its end, unless the process is killed.

    To be entered before the rows of later steps are dropped, since they are what is lost.
    Raises UsageError if a file cannot be written.
    """
    if not writes:
        yield
        return
    folder = Path(workdir) / FOLDER
    record = {
        "step": step,
        "reached": max(step, _last_logged_step(Path(workdir))),
        "started": process_identity.now(),
        "host": socket.gethostname(),
        "processes": jax.process_count(),
    }
    number = _create(folder, json.dumps(record) + "\n")
    try:
        yield
    finally:
        # What ends the run is the error to report, not this one.
        with contextlib.suppress(UsageError):
            json_files.write_json(
                folder / f"{number:04}_end.json", {"ended": process_identity.now()}
            )


def read(workdir: PathLike) -> list[Start]:
    """All starts, in their order; none for a run of an earlier version.

    Raises DataError if a file is damaged.
    """
    folder = Path(workdir) / FOLDER
    names = set(_names(folder))
    starts = []
    for name in sorted(name for name in names if re.fullmatch(r"\d+_start\.json", name)):
        try:
            fields = json.loads(storage.read_text(folder / name))
            end = name.replace("start", "end")
            ended = json.loads(storage.read_text(folder / end))["ended"] if end in names else None
            starts.append(Start(**fields, ended=ended))
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{folder / name} is damaged: remove it") from None
    return starts


def _last_logged_step(workdir: Path) -> int:
    """0 if no row can be read, which is for the metrics logger to report."""
    with contextlib.suppress(DataError):
        rows = read_rows(workdir)
        return rows[-1]["step"] if rows else 0
    return 0


def _create(folder: Path, text: str) -> int:
    """Writes the next start and returns its number."""
    number = sum(name.endswith("_start.json") for name in _names(folder))
    try:
        storage.make_folder(folder)
        while not storage.create(folder / f"{number:04}_start.json", text.encode()):
            number += 1
    except OSError as error:
        raise UsageError(f"cannot write to {os.fspath(folder)}: {error.strerror}") from None
    return number


def _names(folder: Path) -> list[str]:
    try:
        return storage.names(folder)
    except FileNotFoundError:
        return []
