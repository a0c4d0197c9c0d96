"""A folder of your own: `videos/` and `captions.csv` beside it.

captions.csv is comma separated UTF-8 with a header: `video_id,caption` and, if wanted,
`split`, `start`, `end`, in any order; other columns are ignored. A `video_id` is a file's
path inside `videos/`, with or without its extension. Several rows of one video are several
captions of one clip; rows with another `start` or `end` (seconds) are another clip.

Without a `split` column the SHA-256 of the video id decides: about 80% of the videos are
train, 10% val and 10% test, and a video stays where it is when others are added.
"""

import csv
import hashlib
import io
import logging
import math
import os
import unicodedata
from collections.abc import Container, Iterable

from data.annotations import common
from data.errors import DataError, UsageError
from data.records import Clip

SPLITS = {"train": "train", "val": "val", "validation": "val", "dev": "val", "test": "test"}


def require_files(root: str, clips: Iterable[Clip]) -> None:
    """Raises DataError if one of the clips of `root` has no file."""
    clips, folder = list(clips), os.path.join(root, "videos")
    if clips and not os.path.isdir(folder):
        raise DataError(f"{folder}: no such directory; the video files belong there")
    if clips and not any(common.walk(folder)):
        raise DataError(f"{folder}: holds no files; put the videos there")
    ids = list(dict.fromkeys(common.video_id(clip) for clip in clips if not clip.path))
    if ids:
        first = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        raise DataError(
            f"{os.path.join(root, 'captions.csv')}: {len(ids)} of its videos are not in"
            f" {folder}: {first}; add the files or remove the rows"
        )


def read_all(root: str) -> list[Clip]:
    """The clips of `root`, in order of first appearance; the path is "" where there is no file.

    Raises UsageError if `root` is no directory, DataError for all else that is wrong inside it.
    """
    if not os.path.isdir(root):
        what = "is not a directory" if os.path.exists(root) else "does not exist"
        raise UsageError(f"{root!r} {what}; data.root must hold videos/ and captions.csv")
    folder, table = os.path.join(root, "videos"), os.path.join(root, "captions.csv")
    names, stems = _find_files(folder)
    clips: dict[tuple, dict] = {}
    ids: dict[tuple, str] = {}  # video -> the id it was first named by
    splits: dict[tuple, str] = {}  # video -> its split
    table_rows = _read_rows(table)
    named = {row["video_id"] for _, row in table_rows}
    for number, row in table_rows:
        where = f"{table}: row {number}"
        for column in ("video_id", "caption"):
            if not row[column]:
                raise DataError(f"{where}: {column} is empty; fill it in or remove the row")
        path = _match(names, stems, row["video_id"], where)
        video = (path, "" if path else _absent(row["video_id"], named))  # it may go by two ids
        video_id = ids.setdefault(video, row["video_id"])
        split = _split(row, video_id, where)
        if splits.setdefault(video, split) != split:
            raise DataError(
                f"{where}: video {video_id!r} is in {split} and in {splits[video]};"
                " all rows of a video belong in one split"
            )
        start, end = _stretch(row, where)
        clip = clips.setdefault((video, start, end), {"captions": [], "split": split})
        clip["captions"].append(row["caption"])
    unused = sum(common.is_video(path) and (path, "") not in ids for path in names.values())
    if unused:
        logging.warning("%s: %d videos have no captions and are left out", table, unused)
    return [
        Clip(
            _clip_id(ids[video], start, end), video[0], tuple(c["captions"]), c["split"], start, end
        )
        for (video, start, end), c in clips.items()
    ]


def _find_files(folder: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names inside `folder` -> the file; names without a video's extension -> all such files."""
    names: dict[str, str] = {}
    stems: dict[str, list[str]] = {}
    for path in common.walk(folder):
        name = _plain(os.path.relpath(path, folder))
        names[name] = path
        if common.is_video(path):
            stems.setdefault(os.path.splitext(name)[0], []).append(path)
    return names, stems


def _plain(name: str) -> str:
    # Some file systems take accents apart, spreadsheets don't.
    return unicodedata.normalize("NFC", name)


def _match(names: dict, stems: dict, video_id: str, where: str) -> str:
    name = _plain(video_id)
    if name in names:
        return names[name]
    found = stems.get(name, [""])
    if len(found) > 1:
        raise DataError(
            f"{where}: video_id {video_id!r} fits both {found[0]} and {found[1]};"
            " write it with its extension or remove one of them"
        )
    return found[0]


def _absent(video_id: str, named: Container[str]) -> str:
    """One name for a video without a file that goes by two ids, with its extension and without."""
    stem = os.path.splitext(video_id)[0]
    return stem if stem in named and common.is_video(video_id) else video_id


def _read_rows(table: str) -> list[tuple[int, dict[str, str]]]:
    """Rows with their numbers; the header is row 1, as spreadsheets count."""
    if not os.path.isfile(table):
        raise DataError(f"{table}: no such file; it holds the captions (video_id,caption)")
    reader = csv.reader(io.StringIO(common.read_text(table), newline=""), strict=True)
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
            fault = "twice the" if column in header else "no"
            there = ", ".join(header)
            raise DataError(f"{table}: {fault} column {column!r}; its header has: {there}")
    if len(lines) == 1:
        raise DataError(f"{table}: a header but no captions; write one row a caption")
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise DataError(
                f"{table}: row {number} has {len(line)} fields, the header {len(header)};"
                " put captions with commas in double quotes"
            )
    return [(number, dict(zip(header, line, strict=True))) for number, line in lines[1:]]


def _split(row: dict[str, str], video_id: str, where: str) -> str:
    if "split" not in row:
        share = int(hashlib.sha256(video_id.encode()).hexdigest()[:8], 16) / 16**8
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"
    split = SPLITS.get(row["split"].lower())
    if split is None:
        raise DataError(f"{where}: split {row['split']!r} is none of train, val, test")
    return split


def _stretch(row: dict[str, str], where: str) -> tuple[float | None, float | None]:
    """Start and end in seconds; both None for a whole video."""
    seconds: list[float | None] = []
    for column in ("start", "end"):
        text = row.get(column, "")
        try:
            seconds.append(float(text) if text else None)
        except ValueError:
            raise DataError(f"{where}: {column} {text!r} is not a number of seconds") from None
        if text and not 0 <= seconds[-1] < math.inf:
            raise DataError(f"{where}: {column} {text} is not a moment in the video (in seconds)")
    start, end = seconds
    if end is None:
        return start or None, None
    if (start or 0.0) >= end:
        raise DataError(f"{where}: start {start or 0:g} is not before end {end:g}")
    return start or 0.0, end


def _clip_id(video_id: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return video_id
    return f"{video_id}@{start:.12g}-{'' if end is None else format(end, '.12g')}"
