"""Conversion of values to JSON, and files that are written atomically."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import IO, Any

from data.errors import UsageError
from data.storage import files
from data.storage.path import Path


def to_json_types(value: Any) -> Any:
    """`value` in JSON's own types; numbers that are not finite become null.

    A dataclass becomes an object with a key per field. `field(metadata={"json": NAME})` gives
    the key another name, such as "steps/s"; None as the NAME leaves the field out.
    "**" as the NAME puts the keys of the field, a dict, in its place.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {f.name: f.metadata.get("json", f.name) for f in dataclasses.fields(value)}
        members: dict[str, Any] = {}
        for name, key in names.items():
            if key is not None:
                member = getattr(value, name)
                members |= member if key == "**" else {key: member}
        value = members
    if isinstance(value, dict):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and array scalars
        return to_json_types(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def make_workdir(workdir: Path) -> None:
    """Creates the workdir if it does not exist. Raises UsageError if that fails."""
    make_folder(workdir, "--workdir")


def make_folder(folder: Path, flag: str) -> None:
    """Creates the folder that a flag names, likewise."""
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UsageError(f"{flag}={folder} cannot be created: {error.strerror}") from None


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as JSON, atomically; numbers that are not finite become null.

    Raises UsageError if the file cannot be written.
    """
    write_text_atomically(
        Path(path), json.dumps(to_json_types(value), indent=2, allow_nan=False) + "\n"
    )


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a temporary file and renames it: readers see the old file or the new one."""
    # The name of a video file need not be UTF-8.
    with open_atomically(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


@contextlib.contextmanager
def open_atomically(
    path: Path, mode: str, encoding: str | None = None, errors: str | None = None
) -> Iterator[IO[Any]]:
    """A temporary file, opened for writing, that is renamed to `path` when it is complete.

    Raises UsageError if the file cannot be written.
    """
    try:
        with files.open_atomically(path, mode, encoding, errors) as file:
            yield file
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
