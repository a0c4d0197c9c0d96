"""Values as JSON, and JSON files that are written whole or not at all."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from data.errors import UsageError


def to_json_types(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes null.

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
    if hasattr(value, "tolist"):  # arrays and their scalars
        return to_json_types(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def make_workdir(workdir: Path) -> None:
    """Makes the run's folder if it is not there. Raises UsageError if that cannot be done."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be made: {error.strerror}") from None


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """`value` as JSON, whole or not at all; numbers that are not finite become null.

    Raises UsageError if the file cannot be written.
    """
    write_text_atomically(
        Path(path), json.dumps(to_json_types(value), indent=2, allow_nan=False) + "\n"
    )


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` beside `path` and moves it there: readers see the old file or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
