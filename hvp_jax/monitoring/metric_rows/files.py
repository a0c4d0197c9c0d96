"""The rows of a run's metrics: on a disk in WORKDIR/metrics.jsonl, to which they are appended.

In a bucket they are in parts, WORKDIR/metrics/STEP.jsonl, with the first step of the part. What
was copied from one to the other is read as well.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path, PathLike, is_bucket
from hvp_jax.monitoring.json_files import write_text_atomically
from hvp_jax.monitoring.metric_rows.parts import Parts

FILE, PARTS = "metrics.jsonl", "metrics"
READERS = 16  # parts that are read at the same time


class RowWriter(Protocol):
    """Adds rows to those of a run. Its methods raise OSError if writing fails."""

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, of JSON's types, whose `step` is no earlier than that of the last one."""

    def flush(self) -> None:
        """Returns when all rows are where readers see them."""

    def close(self) -> None:
        """Ends the writer, without `flush`."""


def has_rows(workdir: PathLike) -> bool:
    """Whether a run has logged to a workdir."""
    return bool(_files(Path(workdir)))


def read_rows(workdir: PathLike) -> list[dict[str, Any]]:
    """The rows of a workdir, in the order of their steps, without an incomplete last line.

    Raises DataError if there are none or a line is not an object with a `step`.
    """
    files = _files(Path(workdir))
    if not files:
        path = Path(workdir) / FILE
        raise DataError(f"{path} does not exist: run `train` first, which writes it")
    if len(files) == 1:
        return _read(files[0])
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(_read, files))
    return sorted((row for part in parts for row in part), key=lambda row: row["step"])


def open_rows(workdir: Path, step: int) -> RowWriter:
    """A writer for a run that goes on after `step`: rows of later steps are dropped.

    Raises UsageError or OSError if writing fails, DataError as `read_rows` does.
    """
    if is_bucket(workdir):
        return _RowsInParts(workdir, step)
    return _RowsInFile(workdir, step)


class _RowsInFile:
    def __init__(self, workdir: Path, step: int):
        rows = read_rows(workdir) if step and has_rows(workdir) else []
        path = workdir / FILE
        write_text_atomically(path, "".join(_line(row) for row in rows if row["step"] <= step))
        for part in _parts(workdir):
            storage.remove(part)
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()

    def flush(self) -> None:
        pass  # `write` does it

    def close(self) -> None:
        self._file.close()


class _RowsInParts:
    def __init__(self, workdir: Path, step: int):
        for path in _files(workdir):
            rows = _read(path) if step else []
            kept = [row for row in rows if row["step"] <= step]
            if not kept:
                storage.remove(path)
            elif len(kept) < len(rows):
                storage.write_bytes(path, "".join(map(_line, kept)).encode())
        self._parts = Parts(workdir / PARTS)
        self._parts.__enter__()

    def write(self, row: dict[str, Any]) -> None:
        if self._parts.needs_name():
            self._parts.begin(f"{row['step']:09}.jsonl")
        self._parts.append(_line(row).encode())

    def flush(self) -> None:
        self._parts.flush()

    def close(self) -> None:
        self._parts.__exit__()


def _files(workdir: Path) -> list[Path]:
    """The files with rows, in their order."""
    return ([workdir / FILE] if (workdir / FILE).exists() else []) + _parts(workdir)


def _parts(workdir: Path) -> list[Path]:
    try:
        names = storage.names(workdir / PARTS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [workdir / PARTS / name for name in names if re.fullmatch(r"\d+\.jsonl", name)]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = storage.read_text(path, "replace").split("\n")[:-1]
    except FileNotFoundError:  # a run that resumes has just removed it
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0  # raises TypeError unless it is a number
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"{path} line {number} is not a JSON object with a step: fix or remove the file"
            ) from None
        rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
