"""Where a data set is, and what every reader of annotations returns."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class DatasetLocation:
    """A data set and its directories: the config keys `data.*` of the same names.

    `folder` and `shapes` are in `root`. The published data sets have `annotations` and `videos`
    instead; without `videos` no clip has a path. `protocol` selects among a data set's splits.
    """

    dataset: str
    root: str = ""
    annotations: str = ""
    videos: str = ""
    protocol: str = ""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, or one segment of a video, with all its captions.

    `clip_id` is unique within a data set: the video's id, and for a segment the id with its
    start and end. `start` and `end` are seconds; None means the start or end of the video.
    `split` is "train", "val" or "test". `path` is empty if the video file does not exist.
    """

    clip_id: str
    path: str
    captions: tuple[str, ...]
    split: str
    start: float | None = None
    end: float | None = None


class Segment(NamedTuple):
    """A video file, or a stretch of it: `start` and `end` as in `Clip`."""

    path: str
    start: float | None = None
    end: float | None = None


def fingerprint(clips: Iterable[Clip]) -> str:
    """The SHA-256 of clips: ids, splits, captions, segments and their order, not pixels."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(
            repr((clip.clip_id, clip.split, clip.captions, clip.start, clip.end)).encode()
        )
    return digest.hexdigest()


class Annotations(NamedTuple):
    """Everything in the annotation files of a data set."""

    clips: list[Clip]
    uncaptioned: dict[str, list[str]]  # split: ids in its list that have no captions
    unlisted: list[str]  # ids that have captions and are in no split's list: not among the clips


class Broken(NamedTuple):
    """A clip that is missing or must not be trained on."""

    clip_id: str
    path: str
    reason: str
