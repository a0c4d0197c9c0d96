"""JSON files written whole or not at all."""

import json
import math
import os
from pathlib import Path
from typing import Any

from data.errors import BadUse


def plain(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and their scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def make_workdir(workdir: Path) -> None:
    """Makes the run's folder if it is not there. Raises BadUse if that cannot be done."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadUse(f"--workdir={workdir} cannot be made: {error.strerror}") from None


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """`value` as JSON, whole or not at all; numbers that are not finite become null.

    Raises BadUse if the file cannot be written.
    """
    _replace(Path(path), json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
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
        raise BadUse(f"cannot write {path}: {error.strerror}") from None
