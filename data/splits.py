"""Holds validation clips out of training, and selects the clips of a split."""

import collections
import dataclasses
import hashlib
from collections.abc import Collection

from data.annotations import common
from data.errors import DataError
from data.records import Clip


def hold_out(clips: list[Clip], fraction: float, seed: int) -> list[Clip]:
    """The clips with a fraction of the training videos moved to "val", unless val has clips.

    The SHA-256 of `seed` and the video's id decides, so that a video stays in its split when
    others are added or removed.
    """
    if any(clip.split == "val" for clip in clips):
        return clips

    def split_of(clip: Clip) -> str:
        digest = hashlib.sha256(f"{seed}/{common.video_id(clip)}".encode()).hexdigest()
        is_held_out = clip.split == "train" and int(digest[:8], 16) / 16**8 < fraction
        return "val" if is_held_out else clip.split

    return [dataclasses.replace(clip, split=split_of(clip)) for clip in clips]


def clips_of_split(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of one split, in their order; raises DataError if there are none."""
    selected = [clip for clip in clips if clip.split == split]
    if not selected:
        counts = collections.Counter(clip.split for clip in clips)
        others = ", ".join(f"{name} ({count} clips)" for name, count in sorted(counts.items()))
        raise DataError(
            f"split {split!r} has no clips; the data set has {others or 'no clips at all'};"
            " in a data set of kind 'folder' the column 'split' of captions.csv assigns videos"
            " to splits"
        )
    return selected


def clips_of_splits(clips: list[Clip], splits: Collection[str] | None) -> list[Clip]:
    """The clips of several splits, or all clips if `splits` is None."""
    return [clip for clip in clips if splits is None or clip.split in splits]
