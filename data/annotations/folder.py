"""A data set of your own: a folder with `videos/` and `captions.csv`.

captions.csv is comma separated UTF-8 with a header: `video_id,caption` and optionally
`split`, `start`, `end`, in any order; other columns are ignored. A `video_id` is a file's
path inside `videos/`, with or without its extension. Several rows of one video are several
captions of one clip; rows with a different `start` or `end` (seconds) are another clip.

Without a `split` column the SHA-256 of the video id decides: about 80% of the videos are
train, 10% val and 10% test, and a video stays in its split when others are added.
"""

import csv
import hashlib
import io
import logging
import math
import os
from collections.abc import Container, Sequence

from data.annotations import common, files
from data.errors import DataError, UsageError
from data.records import Annotations, Clip, DatasetLocation
from data.storage import listing

SPLITS = {"train": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}
NO_VALUE = ("nan", "NaN", "null", "NULL", "None", "N/A", "#N/A", "<NA>")

_Video = tuple[str, str]  # path of its file, or "" and the id


def require_files(root: str, clips: Sequence[Clip]) -> None:
    """Raises DataError if one of the clips of `root` has no file."""
    folder = os.path.join(root, "videos")
    if clips and not listing.is_folder(folder):
        raise DataError(f"{folder}: no such directory; the video files belong there")
    if clips and not any(common.walk(folder)):
        raise DataError(f"{folder}: contains no files; put the videos there")
    ids = list(dict.fromkeys(common.video_id(clip) for clip in clips if not clip.path))
    if ids:
        # An address or a path from elsewhere is not a missing file.
        hint = ", or write a video_id as a path inside videos/" if "/" in ids[0] else ""
        raise DataError(
            f"{os.path.join(root, 'captions.csv')}: {len(ids)} of its videos are not in"
            f" {folder}: {common.name_missing(ids, folder)}; add the files or remove the rows{hint}"
        )


def read(location: DatasetLocation) -> Annotations:
    """The clips of `location.root`, in order of first appearance.

    Raises UsageError if it is no directory, DataError for anything wrong inside it.
    """
    root = location.root
    with files.readable(root):
        if not listing.is_folder(root):
            raise UsageError(
                f"{files.not_a_directory(root)}; data.root must contain videos/ and captions.csv"
            )
    folder, table = os.path.join(root, "videos"), os.path.join(root, "captions.csv")
    names, stems = _find_files(folder)
    captions: dict[tuple[_Video, float | None, float | None], list[str]] = {}
    ids: dict[_Video, str] = {}  # the first id that its rows use
    splits: dict[_Video, str] = {}
    table_rows = _read_rows(table)
    listed_ids = {row["video_id"] for _, row in table_rows}
    for number, row in table_rows:
        where = f"{table}: row {number}"
        for column in ("video_id", "caption"):
            if not row[column]:
                raise DataError(f"{where}: {column} is empty; fill it in or remove the row")
        if row["caption"] in NO_VALUE:
            raise DataError(
                f"{where}: caption of {row['video_id']!r} is {row['caption']!r}, as programs write "
                "a missing value; fill it in or remove the row"
            )
        path = _find_video(names, stems, row["video_id"], where)
        video = (path, "" if path else _canonical_id(row["video_id"], listed_ids))
        video_id = ids.setdefault(video, row["video_id"])
        split = _split(row, video_id, where)
        if splits.setdefault(video, split) != split:
            raise DataError(
                f"{where}: video {video_id!r} is in {split} and in {splits[video]};"
                " all rows of a video must have the same split"
            )
        captions.setdefault((video, *_segment(row, where)), []).append(row["caption"])
    unused = sum(common.is_video(path) and (path, "") not in ids for path in names.values())
    if unused:
        logging.warning("%s: %d videos have no captions and are skipped", table, unused)
    clips = [
        Clip(
            clip_id=_clip_id(ids[video], start, end),
            path=video[0],
            captions=tuple(texts),
            split=splits[video],
            start=start,
            end=end,
        )
        for (video, start, end), texts in captions.items()
    ]
    return Annotations(clips, {}, [])


def _find_files(folder: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names inside `folder` -> the file; names without extension -> the video files."""
    names: dict[str, str] = {}
    stems: dict[str, list[str]] = {}
    for path in common.walk(folder):
        name = common.normalize(common.name_text(common.relative(path, folder)))
        names[name] = path
        if common.is_video(path):
            stems.setdefault(os.path.splitext(name)[0], []).append(path)
    return names, stems


def _find_video(
    names: dict[str, str], stems: dict[str, list[str]], video_id: str, where: str
) -> str:
    name = common.normalize(video_id)
    if name in names:
        return names[name]
    matches = stems.get(name, [""])
    if len(matches) > 1:
        raise DataError(
            f"{where}: video_id {video_id!r} matches both {matches[0]} and {matches[1]};"
            " add the extension or remove one of them"
        )
    return matches[0]


def _canonical_id(video_id: str, listed_ids: Container[str]) -> str:
    """The id of a video without a file, whose rows may use it with and without its extension."""
    stem = os.path.splitext(video_id)[0]
    return stem if stem in listed_ids and common.is_video(video_id) else video_id


def _read_rows(table: str) -> list[tuple[int, dict[str, str]]]:
    """Rows with their numbers; the header is row 1, as in a spreadsheet."""
    if not listing.is_file(table):
        raise DataError(f"{table}: no such file; it must contain the captions (video_id,caption)")
    reader = csv.reader(io.StringIO(files.read_text(table), newline=""), strict=True)
    try:
        lines = [(n, [cell.strip() for cell in line]) for n, line in enumerate(reader, 1)]
        lines = [(n, line) for n, line in lines if any(line) or len(line) > 1]
    except csv.Error as error:
        raise DataError(f"{table}: line {reader.line_num}: {error}; check the quotes") from None
    if not lines:
        raise DataError(f"{table}: empty; it needs the header video_id,caption")
    header = lines[0][1]
    for column in ("video_id", "caption"):
        if header.count(column) != 1:
            count = "more than one" if column in header else "no"
            names = ", ".join(header)
            raise DataError(f"{table}: {count} column {column!r}; its header has: {names}")
    if len(lines) == 1:
        raise DataError(f"{table}: a header but no captions; write one row per caption")
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise DataError(
                f"{table}: row {number} has {len(line)} fields, the header {len(header)};"
                " put captions with commas in double quotes"
            )
    return [(number, dict(zip(header, line, strict=True))) for number, line in lines[1:]]


def _split(row: dict[str, str], video_id: str, where: str) -> str:
    if "split" not in row:
        fraction = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 16**8
        return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"
    split = SPLITS.get(row["split"].lower())
    if split is None:
        raise DataError(f"{where}: split {row['split']!r} is not train, val or test")
    return split


def _segment(row: dict[str, str], where: str) -> tuple[float | None, float | None]:
    """Start and end in seconds; both None for the full video."""
    start, end = (
        _seconds(row.get(column, ""), f"{where}: {column}") for column in ("start", "end")
    )
    if end is None:
        return start or None, None
    if (start or 0.0) >= end:
        raise DataError(f"{where}: start {start or 0:g} is not before end {end:g}")
    return start or 0.0, end


def _seconds(text: str, where: str) -> float | None:
    try:
        seconds = float(text) if text else None
    except ValueError:
        raise DataError(f"{where} {text!r} is not a number of seconds") from None
    if seconds is not None and not 0 <= seconds < math.inf:
        raise DataError(f"{where} {text} is not a time in the video (in seconds)")
    return seconds


def _clip_id(video_id: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return video_id
    return f"{video_id}@{start:.12g}-{'' if end is None else format(end, '.12g')}"
