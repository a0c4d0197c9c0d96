"""Validation clips held out of training, and the clips of one split."""

import collections
import dataclasses
import hashlib
from collections.abc import Collection

from data.annotations import common
from data.errors import DataError
from data.records import Clip


def hold_out(clips: list[Clip], share: float, seed: int) -> list[Clip]:
    """The clips with a share of the training videos as val, unless there is such a split."""
    if any(clip.split == "val" for clip in clips):
        return clips

    def split(clip: Clip) -> str:
        digest = hashlib.sha256(f"{seed}/{common.video_id(clip)}".encode()).hexdigest()
        is_held = clip.split == "train" and int(digest[:8], 16) / 16**8 < share
        return "val" if is_held else clip.split

    return [dataclasses.replace(clip, split=split(clip)) for clip in clips]


def clips_of_split(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of one split, in their order; raises DataError if there are none."""
    chosen = [clip for clip in clips if clip.split == split]
    if not chosen:
        sizes = collections.Counter(clip.split for clip in clips)
        there = ", ".join(f"{name} ({size} clips)" for name, size in sorted(sizes.items()))
        raise DataError(
            f"split {split!r} has no clips; there is {there or 'no clip at all'};"
            " in a folder of your own a column 'split' in captions.csv can say which videos"
            " belong to it"
        )
    return chosen


def clips_of_splits(clips: list[Clip], splits: Collection[str] | None) -> list[Clip]:
    """The clips of some splits, of all if it is None."""
    return [clip for clip in clips if splits is None or clip.split in splits]
