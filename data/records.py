"""What every reader of annotations returns."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, or one stretch of a video, with all its captions.

    `clip_id` is unique within a data set: the video's id, and for a stretch of it
    the id with its start and end. `start` and `end` are seconds; None is the
    video's own. `split` is "train", "val" or "test". `path` is empty where no file
    of the video is there.
    """

    clip_id: str
    path: str
    captions: tuple[str, ...]
    split: str
    start: float | None = None
    end: float | None = None


class Annotations(NamedTuple):
    """All that the annotation files of a data set tell."""

    clips: list[Clip]
    uncaptioned: dict[str, list[str]]  # split: ids that its list has and no caption
    unlisted: list[str]  # ids that have captions and are in no list of a split: left out


class Broken(NamedTuple):
    """A clip that is missing or not to be trained on."""

    clip_id: str
    path: str
    reason: str
