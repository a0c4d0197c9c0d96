"""Excludes the clips whose ids are in a file, such as the `bad_ids.txt` of `doctor`."""

import collections
import json
import logging
from collections.abc import Sequence

from data.annotations import common
from data.errors import DataError, UsageError
from data.records import Clip
from data.storage import files as storage
from data.storage import listing
from data.storage.path import PathLike

SPLITS = ("train", "val", "test")
LOG = logging.getLogger(__name__)


def read_ids(path: str) -> frozenset[str]:
    """The ids in a UTF-8 file, one per line, plain or as JSON strings; none if `path` is empty.

    Raises UsageError if there is no such file, DataError if it cannot be read.
    """
    if not path:
        return frozenset()
    try:
        if not listing.is_file(path):
            raise UsageError(
                f"data.exclude is {path}: no such file; it must contain the ids of clips to exclude"
            )
        text = storage.read_text(path, encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: data.exclude cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}; data.exclude must be a text file in UTF-8") from None
    lines = [line.strip() for line in text.split("\n")]
    return frozenset(_read_id(line) for line in lines if line)


def _read_id(line: str) -> str:
    try:
        return json.loads(line) if line.startswith('"') else line
    except ValueError:
        return line  # an id that begins with a quote


def write_ids(path: PathLike, ids: Sequence[str]) -> None:
    """Writes one JSON string per line, since an id may contain a newline."""
    with storage.open_atomically(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(clip_id) + "\n" for clip_id in ids)


def excluded_clips(clips: Sequence[Clip], ids: frozenset[str]) -> list[Clip]:
    """The clips, out of all clips of a data set, that `ids` exclude, in order.

    Logs how many they are, and how many ids match no clip.
    """
    excluded = [clip for clip in clips if common.is_among(clip, ids)]
    if excluded:
        counts = collections.Counter(clip.split for clip in excluded)
        per_split = ", ".join(f"{count} {split}" for split in SPLITS if (count := counts[split]))
        LOG.info("data.exclude excludes %d clips: %s", len(excluded), per_split)
    matched = {name for clip in excluded for name in (clip.clip_id, common.video_id(clip))}
    if unknown := sorted(ids - matched):
        LOG.warning(
            "data.exclude: %d ids match no clip of the data set: %s",
            len(unknown),
            common.first_few([repr(clip_id) for clip_id in unknown]),
        )
    return excluded
