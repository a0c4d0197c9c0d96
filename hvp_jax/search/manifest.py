"""index.json: which model an index is made with, of which folder, and how."""

import dataclasses
import json
import os
from typing import Any

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path, PathLike
from hvp_jax.monitoring.json_files import write_json

FILE = "index.json"
FORMAT = 1  # of the table and of this file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """`recall` is what `recall.measure` returns, None before the first commit."""

    format: int = FORMAT
    fingerprint: str  # of the model
    weights: str  # from where `index` loaded it
    root: str  # the indexed folder
    segment_seconds: int
    tokens: str  # the integers that tokens are kept as
    recall: dict[str, Any] | None = None


def read(uri: PathLike) -> Manifest | None:
    """The manifest of an index, None if there is none.

    Raises DataError if the file is damaged, UsageError if this version cannot read the index.
    """
    path = os.path.join(uri, FILE)
    try:
        fields = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: damaged; remove the index and run `index` again") from None
    if fields.get("format") != FORMAT:
        raise UsageError(
            f"{uri} has format {fields.get('format')!r}, this version reads {FORMAT}: make a new "
            "index"
        )
    try:
        return Manifest(**fields)
    except TypeError as error:
        raise DataError(f"{path}: damaged ({error}); remove the index") from None


def write(uri: PathLike, manifest: Manifest) -> None:
    """Writes the manifest of an index, atomically."""
    write_json(Path(uri) / FILE, vars(manifest))


def require(uri: PathLike) -> Manifest:
    """The manifest of an index. Raises UsageError if there is none."""
    found = read(uri)
    if found is None:
        raise UsageError(f"--index={uri} holds no index: make one with `index`")
    return found


def require_same(uri: PathLike, found: Manifest, wanted: Manifest) -> None:
    """Raises UsageError if an index was made in another way than is wanted now."""
    require_model(uri, found, wanted.fingerprint, wanted.weights)
    for field, flag in (
        ("root", "--videos"),
        ("segment_seconds", "--segment-seconds"),
        ("tokens", "--tokens"),
    ):
        before, now = getattr(found, field), getattr(wanted, field)
        if before != now:
            raise UsageError(
                f"{flag} is {now}, but {uri} was made with {before}: give that, or another --index"
            )


def require_model(uri: PathLike, found: Manifest, fingerprint: str, weights: str) -> None:
    """Raises UsageError if the index was made with another model."""
    if fingerprint != found.fingerprint:
        raise UsageError(
            f"{weights} is another model than the one that {uri} was made with "
            f"({found.weights}): give that as --weights, or make another index"
        )
