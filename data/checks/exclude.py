"""The clips that a file of ids leaves out, such as the `bad_ids.txt` that `doctor` writes."""

import collections
import json
import logging
import os
from collections.abc import Sequence

from data.annotations import common
from data.errors import DataError, UsageError
from data.records import Clip

SPLITS = ("train", "val", "test")
LOG = logging.getLogger(__name__)


def read_ids(path: str) -> frozenset[str]:
    """The ids in a UTF-8 file, one a line, plain or as a JSON string; none if `path` is empty.

    Raises UsageError if there is no such file, DataError if it cannot be read.
    """
    if not path:
        return frozenset()
    if not os.path.isfile(path):
        raise UsageError(
            f"data.exclude is {path}: no such file; it holds the ids of clips to leave out"
        )
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; data.exclude must be a text file in UTF-8") from None
    return frozenset(_read_id(line) for line in lines if line)


def _read_id(line: str) -> str:
    try:
        found = json.loads(line) if line.startswith('"') else line
    except ValueError:
        return line  # an id that begins with a quote
    return found if isinstance(found, str) else line


def write_ids(path: str | os.PathLike, ids: Sequence[str]) -> None:
    """Writes each id as a JSON string on a line of its own, so that one with a newline survives."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(name) + "\n" for name in ids)


def excluded_clips(clips: Sequence[Clip], ids: frozenset[str]) -> list[Clip]:
    """Those of all clips of a data set that `ids` leave out, in order.

    Logs how many they are, and how many ids belong to no clip.
    """
    out = [clip for clip in clips if common.is_among(clip, ids)]
    if out:
        sizes = collections.Counter(clip.split for clip in out)
        told = ", ".join(f"{size} {split}" for split in SPLITS if (size := sizes[split]))
        LOG.info("data.exclude leaves out %d clips: %s", len(out), told)
    named = {name for clip in out for name in (clip.clip_id, common.video_id(clip))}
    if unknown := sorted(ids - named):
        first = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        LOG.warning("data.exclude: %d ids are of no clip of the data set: %s", len(unknown), first)
    return out
