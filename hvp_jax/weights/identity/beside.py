"""The JSON files beside a checkpoint."""

import json
from typing import Any

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path

HUGGING_FACE_CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError that names the file."""
    try:
        value = json.loads(storage.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object")
    return value


def read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def section(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """The first of these entries that is an object with content."""
    for name in names:
        if isinstance(config.get(name), dict) and config[name]:
            return config[name]
    return {}
