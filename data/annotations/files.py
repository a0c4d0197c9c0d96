"""Reads annotation files: text, JSON and tables, with errors that name the file and line."""

import contextlib
import csv
import fnmatch
import io
import json
import os
from collections.abc import Iterator
from typing import Any

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage import listing
from data.storage.path import is_bucket


def find_annotation_file(folder: str, *names: str, optional: bool = False) -> str:
    """The file in `folder` named `names[0]`, or else the only one that matches any of `names`.

    A name may contain `*`; case is ignored unless the first name matches exactly. "" if there is
    no file and it is `optional`. Raises UsageError if `folder` is no directory, DataError if no
    file matches, or several do and none is named `names[0]`.
    """
    with readable(folder):
        if not listing.is_folder(folder):
            raise UsageError(f"{not_a_directory(folder)}; data.annotations must contain {names[0]}")
        files = [name for name in storage.names(folder) if not name.startswith(".")]
    matches = [name for name in files if any(_matches(name, pattern) for pattern in names)]
    if names[0] in matches:
        matches = [names[0]]
    if len(matches) > 1:
        raise DataError(
            f"{folder}: both {matches[0]} and {matches[1]} exist; leave only one of them there"
        )
    if not matches and not optional:
        if len(names) > 1:
            raise DataError(f"{folder}: none of {', '.join(names)} exists; add one of them")
        raise DataError(f"{folder}: {names[0]} does not exist; add it")
    return os.path.join(folder, matches[0]) if matches else ""


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.lower(), pattern.lower())


def not_a_directory(path: str) -> str:
    """The first half of an error message about `path`, which is no directory."""
    where = "" if is_bucket(path) or os.path.isabs(path) else f" in {os.getcwd()}"
    return f"{path!r} {'is not a directory' if listing.is_file(path) else 'does not exist'}{where}"


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turns an OSError inside into a DataError about the file or folder that is read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(path: str) -> str:
    """The text of a UTF-8 file without its byte order mark. Raises DataError, naming the line."""
    with readable(path):
        content = storage.read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} contains a null byte; save the file as UTF-8 text")
    return text


def read_lines(path: str) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank; any line ending is accepted."""
    # Not splitlines, which also splits at characters that captions may contain.
    lines = io.StringIO(read_text(path), newline=None)
    return [(number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]


def read_ids(path: str) -> list[str]:
    """The distinct ids of a file: one per line, or a JSON list."""
    if not path.endswith(".json"):
        return list(dict.fromkeys(line.strip() for _, line in read_lines(path)))
    with expecting(path, "a list of ids"):
        ids = check_type(list, read_json(path), "it")
        ids = [check_type(str, video_id, f"id {i}").strip() for i, video_id in enumerate(ids, 1)]
    return list(dict.fromkeys(ids))


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises DataError if it is truncated or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; it is truncated or"
            " not JSON: get the file again"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); get the file again") from None


def read_table(path: str, *columns: str) -> list[list[str]]:
    """The named columns of each row of a comma separated file with a header."""
    end = "the end of the file"
    # An unclosed quote includes everything after it, so this last row is then missing.
    reader = csv.reader(io.StringIO(f"{read_text(path).rstrip()}\n{end}", newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; check the quotes") from None
    if rows.pop()[1] != [end]:
        line = rows[-1][0] + 1 if rows else 1
        raise DataError(f"{path}: the row at line {line} has an unclosed quote")
    header = [name.strip() for name in rows[0][1]] if rows else []
    for column in columns:
        if column not in header:
            names = ", ".join(header) or "nothing"
            raise DataError(f"{path}: no column {column!r}; its header has: {names}")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} fields, the header {len(header)}")
    indices = [header.index(column) for column in columns]
    return [[row[i].strip() for i in indices] for _, row in rows[1:]]


@contextlib.contextmanager
def expecting(path: str, structure: str) -> Iterator[None]:
    """Turns what `check_type` and `field` raise inside into a DataError about the file."""
    try:
        yield
    except UnexpectedValue as error:
        raise DataError(f"{path}: is not {structure}: {error}") from None


class UnexpectedValue(Exception):
    """A value in a file is of another type than expected."""


def check_type(kind: type, value: Any, name: str) -> Any:
    """The value; raises UnexpectedValue, with its `name`, if it is of another type."""
    if not isinstance(value, kind):
        raise UnexpectedValue(f"{name} is {_describe(value)}")
    return value


def field(row: Any, key: str, kind: type, name: str) -> Any:
    """`row[key]`; raises UnexpectedValue, with the `name` of the row, if there is no such value."""
    if key not in check_type(dict, row, name):
        raise UnexpectedValue(f"{name} has no {key!r}")
    return check_type(kind, row[key], f"{key!r} of {name}")


def _describe(value: Any) -> str:
    """A value in the words of JSON; a long one by its type."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), "of another type")
