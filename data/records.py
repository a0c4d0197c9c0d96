"""What every reader of annotations returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video, or one stretch of a video, with all its captions.

    `clip_id` is unique within a data set: the video's id, and for a stretch of it
    the id with its start and end. `start` and `end` are seconds; None is the
    video's own. `split` is "train", "val" or "test".
    """

    clip_id: str
    path: str
    captions: tuple[str, ...]
    split: str
    start: float | None = None
    end: float | None = None
