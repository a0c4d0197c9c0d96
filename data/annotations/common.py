"""Shared by the readers of annotations."""

import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.annotations import files
from data.errors import DataError, UsageError
from data.records import Annotations, Clip
from data.storage import listing
from data.storage.path import is_bucket

EXTENSIONS = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .h264 .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 .mpeg"
    " .mpg .mts .mxf .ogg .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)

Captions = Mapping[str, list[str]]  # id -> its captions, cleaned; some may be empty


def first_few(names: Sequence[str]) -> str:
    """The first three names, for an error message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def clean(caption: str) -> str:
    """A caption with single spaces."""
    return " ".join(caption.split())


def clean_all(value: list[str] | str, video_id: str) -> list[str]:
    """The cleaned captions of a video, given as a list or as a single string."""
    texts = [value] if isinstance(value, str) else value
    return [clean(text) for text in check_texts(texts, "caption", video_id)]


def check_texts(value: Any, noun: str, video_id: str) -> list[str]:
    """A list of a video's texts; raises `files.UnexpectedValue` if it is something else."""
    texts = files.check_type(list, value, f"the value of {video_id!r}")
    for number, text in enumerate(texts, 1):
        files.check_type(str, text, f"{noun} {number} of {video_id!r}")
    return texts


def video_id(clip: Clip) -> str:
    """The id of a clip's video; for a segment it differs from the clip's id."""
    is_full_video = clip.start is None and clip.end is None
    return clip.clip_id if is_full_video else clip.clip_id.rpartition("@")[0] or clip.clip_id


def is_among(clip: Clip, ids: Container[str]) -> bool:
    """Whether `ids` contains a clip's id, or its video's."""
    return clip.clip_id in ids or video_id(clip) in ids


def without(clips: Iterable[Clip], exclude: frozenset[str]) -> list[Clip]:
    """The clips except those whose id, or whose video's id, is in `exclude`."""
    return [clip for clip in clips if not is_among(clip, exclude)]


def walk(folder: str) -> Iterator[str]:
    """Sorted paths of all files below `folder` that are not hidden; symlinks are followed."""
    if is_bucket(folder):
        with files.readable(folder):
            paths = listing.find(folder)
        yield from (path for path in paths if not re.search(r"(^|/)\.", relative(path, folder)))
        return

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None

    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # A symlink to a parent folder would be followed for ever.
        folders[:] = sorted(
            name for name in folders if name[0] != "." and _is_new(os.path.join(parent, name), seen)
        )
        yield from (os.path.join(parent, name) for name in sorted(names) if name[0] != ".")


def relative(path: str, folder: str) -> str:
    """The path inside `folder` of a file that `walk` gives."""
    return path.removeprefix(folder).lstrip("/")


def name_text(path: str) -> str:
    """A file's name as the text that tables use for it: UTF-8, whatever the locale is."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _is_new(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new


def normalize(name: str) -> str:
    """A file's name or an id in one spelling: some file systems decompose accented letters."""
    return unicodedata.normalize("NFC", name)


def name_missing(ids: Sequence[str], folder: str) -> str:
    """The first few of the ids without a file, with the file in `folder` that each may mean."""
    similar: dict[str, str] = {}
    for path in walk(folder):
        name = _loose(path)
        for key in (name, os.path.splitext(name)[0].rstrip()):
            similar.setdefault(key, relative(path, folder))

    def describe(video_id: str) -> str:
        name = _loose(video_id)
        found = similar.get(name) or similar.get(os.path.splitext(name)[0] * is_video(name))
        return f"{video_id} (there is {found!r})" if found else video_id

    return first_few([describe(video_id) for video_id in ids])


def _loose(path: str) -> str:
    """A file's name regardless of its folder, case, accents' spelling and spaces at the ends."""
    return normalize(os.path.basename(path)).casefold().strip()


def is_video(path: str) -> bool:
    """Whether a file's extension is a video's."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def index_videos(videos: str) -> dict[str, list[str]]:
    """File names below `videos`, with and without extension -> paths; none if it is ""."""
    with files.readable(videos):
        if videos and not listing.is_folder(videos):
            raise UsageError(
                f"{files.not_a_directory(videos)}; data.videos must be the directory of the video"
                " files"
            )
    paths: dict[str, list[str]] = {}
    for path in walk(videos) if videos else ():
        name = normalize(name_text(os.path.basename(path)))
        for key in {name, os.path.splitext(name)[0]}:
            paths.setdefault(key, []).append(path)
    return paths


def match_video(paths: Mapping[str, list[str]], *names: str) -> str:
    """The video file that has any of `names`; "" if there is none.

    Files with another extension than a video's count only if there is no video file. Raises
    DataError if two files match.
    """
    matches = list(dict.fromkeys(path for name in names for path in paths.get(normalize(name), ())))
    matches = [path for path in matches if is_video(path)] or matches
    if len(matches) > 1 and len(set(map(_real_path, matches))) > 1:
        raise DataError(
            f"video {names[0]!r} matches both {matches[0]} and {matches[1]}; remove one of them"
        )
    return matches[0] if matches else ""


def _real_path(path: str) -> str:
    return path if is_bucket(path) else os.path.realpath(path)


def build_clips(
    folder: str,
    splits: Mapping[str, tuple[Iterable[str], Captions]],
    path_of: Callable[[str], str],
) -> Annotations:
    """The clips of `splits`: split -> its ids, and captions of at least these.

    An id whose captions are all empty counts as uncaptioned. Raises DataError, naming `folder`,
    if an id is in two splits.
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
                    " lists are not of the same version"
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
