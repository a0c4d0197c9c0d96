"""The videos that an index is made of: the files of a folder, and the captions beside them."""

import dataclasses
import logging
import os
from collections.abc import Iterable

from data.annotations import common, files
from data.errors import DataError, UsageError
from data.storage import listing
from data.storage.path import PathLike, absolute, is_bucket

NOT_UTF8 = "its name is not UTF-8; rename it"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Video:
    """A file of the collection."""

    name: str  # its path inside the folder
    path: str  # from the root, or in a bucket
    version: str  # changes with the file; "" if there is no such file
    captions: tuple[str, ...] = ()  # those of captions.csv
    sidecar: str = ""  # the text file beside it with its captions


@dataclasses.dataclass(frozen=True)
class Collection:
    """The videos below `root`, sorted by name, and those that cannot be indexed by their name."""

    root: str
    videos: list[Video]
    skipped: dict[str, str]  # name -> reason

    @property
    def waits(self) -> bool:
        """Whether reading waits for the answers of a bucket, see `frame_sources.num_threads`."""
        return is_bucket(self.root)


def read_collection(place: PathLike) -> Collection:
    """The videos of a folder and of those below it.

    `place` may also be the folder of a data set, with videos/ and captions.csv, or a text file
    with the path of a video on each line, below the folder of that file. Raises UsageError if it
    is none of these, DataError if there is no video.
    """
    path = str(absolute(place))
    with files.readable(path):
        is_folder, is_list = listing.is_folder(path), listing.is_file(path)
        inner = os.path.join(path, "videos")
        is_data_set = listing.is_file(os.path.join(path, "captions.csv"))
        if is_folder and is_data_set and listing.is_folder(inner):
            path = inner
    if is_list:
        root, names, texts = os.path.dirname(path), _read_list(path), None
    elif is_folder:
        everything = [common.relative(file, path) for file in common.walk(path)]
        root, names = path, sorted(filter(common.is_video, everything))
        texts = {name for name in everything if name.endswith(".txt")}
    else:
        raise UsageError(f"--videos={place}: {files.not_a_directory(str(place))}")
    if not names:
        raise DataError(f"{path}: there is no video in it")
    good = [name for name in names if _is_utf8(name)]
    skipped = {common.name_text(name): NOT_UTF8 for name in names if not _is_utf8(name)}
    return Collection(root, _describe(root, good, texts), skipped)


def captions_of(video: Video) -> tuple[str, ...]:
    """All captions of a video; a text file that cannot be read has none."""
    if not video.sidecar:
        return video.captions
    try:
        lines = [common.clean(line) for _, line in files.read_lines(video.sidecar)]
    except DataError as error:
        log.warning("the captions are left out: %s", error)
        return video.captions
    return video.captions + tuple(lines)


def _read_list(path: str) -> list[str]:
    """The names in a list, sorted. Raises UsageError if one is not below the list's folder."""
    if common.is_video(path):
        raise UsageError(
            f"--videos={path} is a video; give its folder, or a text file with a path on each line"
        )
    folder, names = os.path.dirname(path), set()
    for number, line in files.read_lines(path):
        name = line.strip()
        if is_bucket(folder):
            name = name.removeprefix(f"{folder}/")
        else:
            name = os.path.relpath(os.path.join(folder, name), folder)
        if name.startswith("../") or is_bucket(name):
            raise UsageError(f"{path}: line {number}: {line.strip()} is not below {folder}")
        names.add(name)
    return sorted(names)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe(root: str, names: list[str], texts: set[str] | None) -> list[Video]:
    """The videos with these names; `texts` are the text files there, None if that is unknown."""
    paths = {name: os.path.join(root, name) for name in names}
    versions = listing.versions(paths.values())
    captions = _read_table(root)
    if texts is None:
        beside = {f"{os.path.splitext(name)[0]}.txt" for name in names}
        found = listing.sizes(os.path.join(root, name) for name in beside)
        texts = {common.relative(path, root) for path in found}
    videos = []
    for name, path in paths.items():
        sidecar = f"{os.path.splitext(name)[0]}.txt"
        videos.append(
            Video(
                name=name,
                path=path,
                version=versions.get(path, ""),
                captions=_captions_by_name(captions, name),
                sidecar=os.path.join(root, sidecar) if sidecar in texts else "",
            )
        )
    return videos


def _captions_by_name(captions: dict[str, list[str]], name: str) -> tuple[str, ...]:
    key = common.normalize(name)
    # In the list of a data set's videos their names begin with the folder.
    names = (key, key.removeprefix("videos/"))
    keys: Iterable[str] = dict.fromkeys(x for n in names for x in (n, os.path.splitext(n)[0]))
    return tuple(text for key in keys for text in captions.get(key, ()))


def _read_table(root: str) -> dict[str, list[str]]:
    """video_id -> captions, of captions.csv in the folder, or beside it if it is videos/."""
    folders = [root]
    if os.path.basename(root) == "videos":
        folders.append(os.path.dirname(root))
    captions: dict[str, list[str]] = {}
    for folder in folders:
        path = os.path.join(folder, "captions.csv")
        try:
            with files.readable(path):
                if not listing.is_file(path):
                    continue
            for video_id, caption in files.read_table(path, "video_id", "caption"):
                if caption:
                    texts = captions.setdefault(common.normalize(video_id), [])
                    texts.append(common.clean(caption))
        except DataError as error:
            log.warning("the captions are left out: %s", error)
    return captions
