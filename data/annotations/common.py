"""What the readers of published annotation files share."""

import contextlib
import csv
import fnmatch
import io
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from data.errors import DataError, UsageError
from data.records import Annotations, Clip

EXTENSIONS = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .h264 .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 .mpeg"
    " .mpg .mts .mxf .ogg .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)

Captions = Mapping[str, list[str]]  # id -> its captions, cleaned; empty ones may be among them


def find_annotation_file(folder: str, *names: str, optional: bool = False) -> str:
    """The file of one role in `folder`: of the first name, or else of another of `names`.

    A name may hold `*`; but for the first, case is ignored. "" if there is none and it is
    `optional`. Raises UsageError if `folder` is no directory, DataError if no file is there, or
    several and none of the first name.
    """
    if not os.path.isdir(folder):
        what = "is not a directory" if os.path.exists(folder) else "does not exist"
        raise UsageError(f"{folder!r} {what}; data.annotations must hold {names[0]}")
    there = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    found = [name for name in there if any(_fits(name, like) for like in names)]
    if names[0] in found:
        found = [names[0]]
    if len(found) > 1:
        raise DataError(
            f"{folder}: which one is meant, {found[0]} or {found[1]}? leave only one of them there"
        )
    if not found and not optional:
        if len(names) > 1:
            raise DataError(f"{folder}: none of {', '.join(names)} is there; put one of them there")
        raise DataError(f"{folder}: {names[0]} is not there; put it there")
    return os.path.join(folder, found[0]) if found else ""


def _fits(name: str, like: str) -> bool:
    return fnmatch.fnmatchcase(name.lower(), like.lower())


def read_text(path: str) -> str:
    """The text of a UTF-8 file, less a byte order mark. Raises DataError, naming the line."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} holds a null byte; save the file as UTF-8 text")
    return text


def read_lines(path: str) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank, whatever ends them."""
    # Not splitlines, which also splits at characters that captions may hold.
    lines = io.StringIO(read_text(path), newline=None)
    return [(number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]


def read_ids(path: str) -> list[str]:
    """Ids, one a line or as a JSON list; each once."""
    if not path.endswith(".json"):
        return list(dict.fromkeys(line.strip() for _, line in read_lines(path)))
    with expecting(path, "a list of ids"):
        ids = [video_id.strip() for video_id in _of(list, read_json(path))]
    return list(dict.fromkeys(ids))


def read_json(path: str) -> Any:
    """What a JSON file holds. Raises DataError if it is cut off or no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; it is cut off or"
            " no JSON: get the file again"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); get the file again") from None


def read_table(path: str, *columns: str) -> list[list[str]]:
    """The named columns of each row of a comma separated file with a header."""
    end = "the end of the file"
    # An open quote swallows all that follows, that last row too.
    reader = csv.reader(io.StringIO(f"{read_text(path).rstrip()}\n{end}", newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}; check the quotes") from None
    if rows.pop()[1] != [end]:
        line = rows[-1][0] + 1 if rows else 1
        raise DataError(f"{path}: the row at line {line} has a quote that nothing closes")
    header = [name.strip() for name in rows[0][1]] if rows else []
    for column in columns:
        if column not in header:
            there = ", ".join(header) or "nothing"
            raise DataError(f"{path}: no column {column!r}; its header has: {there}")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} fields, the header {len(header)}")
    places = [header.index(column) for column in columns]
    return [[row[place].strip() for place in places] for _, row in rows[1:]]


@contextlib.contextmanager
def expecting(path: str, shape: str) -> Iterator[None]:
    """Turns what Python says of data of another shape into DataError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not {shape} ({type(error).__name__}: {error})") from None


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def clean(caption: str) -> str:
    """A caption with single spaces. Raises AttributeError if it is no text."""
    return " ".join(caption.split())


def strings(value: list[str] | str) -> list[str]:
    """Captions of a video, one of which may stand alone, cleaned."""
    return [clean(caption) for caption in ([value] if isinstance(value, str) else _of(list, value))]


def video_id(clip: Clip) -> str:
    """The id of a clip's video, which for a stretch of it is not the clip's."""
    whole = clip.start is None and clip.end is None
    return clip.clip_id if whole else clip.clip_id.rpartition("@")[0] or clip.clip_id


def is_among(clip: Clip, ids: Container[str]) -> bool:
    """Whether a list of ids names a clip, or the video it is a stretch of."""
    return clip.clip_id in ids or video_id(clip) in ids


def without(clips: Iterable[Clip], exclude: frozenset[str]) -> list[Clip]:
    """The clips that neither their own id nor their video's excludes."""
    return [clip for clip in clips if not is_among(clip, exclude)]


def walk(folder: str) -> Iterator[str]:
    """Paths of all files below `folder` but what is hidden, in order; links are followed."""
    seen = {os.path.realpath(folder)}
    for here, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder above would be followed in circles.
        folders[:] = sorted(
            name for name in folders if name[0] != "." and _is_new(os.path.join(here, name), seen)
        )
        yield from (os.path.join(here, name) for name in sorted(names) if name[0] != ".")


def _is_new(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new


def is_video(path: str) -> bool:
    """Whether a file's extension is a video's."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def index_videos(videos: str) -> dict[str, list[str]]:
    """Names of the files below `videos`, with and without extension -> their paths."""
    if videos and not os.path.isdir(videos):
        what = "is not a directory" if os.path.exists(videos) else "does not exist"
        raise UsageError(f"{videos!r} {what}; data.videos must be the directory of the video files")
    paths: dict[str, list[str]] = {}
    for path in walk(videos) if videos else ():
        name = os.path.basename(path)
        for key in {name, os.path.splitext(name)[0]}:
            paths.setdefault(key, []).append(path)
    return paths


def match_video(paths: Mapping[str, list[str]], *names: str) -> str:
    """The file of a video that goes by any of `names`; "" if there is none.

    Beside a video, files of the same name and another kind do not count. Raises DataError if
    two files fit.
    """
    found = list(dict.fromkeys(path for name in names for path in paths.get(name, ())))
    found = [path for path in found if is_video(path)] or found
    if len(found) > 1 and len({os.path.realpath(path) for path in found}) > 1:
        raise DataError(
            f"video {names[0]!r} fits both {found[0]} and {found[1]}; remove one of them"
        )
    return found[0] if found else ""


def build_clips(
    folder: str,
    splits: Mapping[str, tuple[Iterable[str], Captions]],
    path_of: Callable[[str], str],
) -> Annotations:
    """The clips of ids and captions, split by split; `folder` is named where they clash.

    An id whose captions are all empty has none. Raises DataError if an id is in two splits.
    """
    clips: list[Clip] = []
    split_of: dict[str, str] = {}
    uncaptioned: dict[str, list[str]] = {}
    for split, (ids, captions) in splits.items():
        uncaptioned[split] = []
        for video_id in ids:
            if split_of.setdefault(video_id, split) != split:
                raise DataError(
                    f"{folder}: {video_id!r} is in {split} and in {split_of[video_id]}; these"
                    " lists do not belong together"
                )
            texts = tuple(text for text in captions.get(video_id, ()) if text)
            if texts:
                clips.append(Clip(video_id, path_of(video_id), texts, split))
            else:
                uncaptioned[split].append(video_id)
    with_captions = dict.fromkeys(
        video_id
        for _, captions in splits.values()
        for video_id, texts in captions.items()
        if any(texts)
    )
    unlisted = [video_id for video_id in with_captions if video_id not in split_of]
    return Annotations(clips, uncaptioned, unlisted)
