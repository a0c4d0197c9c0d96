"""One small reader a data set; all of them return the same records."""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Collection

from data import shapes
from data.annotations import (
    activitynet,
    charades,
    didemo,
    files,
    folder,
    lsmdc,
    msrvtt,
    msvd,
    vatex,
)
from data.records import Annotations, Clip
from hvp_jax.errors import BadData, BadUse

OWN = ("folder", "shapes")  # they lie in data.root
PUBLISHED = {
    "msrvtt": msrvtt.read,
    "didemo": didemo.read,
    "activitynet": activitynet.read,
    "lsmdc": lsmdc.read,
    "msvd": msvd.read,
    "vatex": vatex.read,
    "charades": charades.read,
}
PROTOCOLS = ("msrvtt", "vatex")  # the data sets that have several
DATASETS = (*OWN, *PUBLISHED)


def read_all(
    dataset: str, root: str, annotations: str, videos: str, protocol: str = ""
) -> Annotations:
    """All that the annotation files tell, of every split; a missing video's path is "".

    `folder` and `shapes` lie in `root`; `shapes` is made there if it is not there yet. The
    published data sets have their `annotations` and `videos` in directories of their own,
    of which `videos` may be "" for none. `protocol` says which of a data set's splits are
    meant. Raises BadUse if the data set is unknown or its directory is not given, and what
    its reader raises.
    """
    _check(dataset, root, annotations, videos, protocol)
    if dataset in OWN:
        return Annotations(folder.read_all(root), {}, [])
    return PUBLISHED[dataset](annotations, videos, protocol)


def read(
    dataset: str,
    root: str,
    annotations: str,
    videos: str,
    protocol: str = "",
    held_out: float = 0.0,
    seed: int = 0,
    exclude: frozenset[str] = frozenset(),
    splits: Collection[str] | None = None,
) -> list[Clip]:
    """The clips of every split but for those whose id is in `exclude`; those of `splits`, of
    all if it is None, with a file.

    Arguments as `read_all`'s. Where the data set has no validation split, the share
    `held_out` of the training videos becomes one: a video's SHA-256 with `seed` decides,
    so it stays where it is when others come or go. Raises BadData if files are missing.
    """
    _check(dataset, root, annotations, videos, protocol)
    if dataset in OWN:
        clips = files.without(folder.read_all(root), exclude)
        clips = hold_out(clips, held_out, seed)
        folder.require_files(root, _of(clips, splits))
        return clips
    if not videos and splits != ():
        raise BadUse(
            f"data.videos is empty; data set {dataset!r} needs the directory of its videos there"
        )
    found = PUBLISHED[dataset](annotations, videos, protocol)
    for split, ids in found.uncaptioned.items():
        if ids:
            logging.warning(
                "%s: %d ids of %s have no captions and are left out", annotations, len(ids), split
            )
    clips = hold_out(files.without(found.clips, exclude), held_out, seed)
    needed = _of(clips, splits)
    absent = [clip.clip_id for clip in needed if not clip.path]
    if absent:
        first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise BadData(
            f"{videos}: {len(absent)} of {len(needed)} videos are missing: {first};"
            " add the files or exclude the ids"
        )
    return clips


def _of(clips: list[Clip], splits: Collection[str] | None) -> list[Clip]:
    return [clip for clip in clips if splits is None or clip.split in splits]


def _check(dataset: str, root: str, annotations: str, videos: str, protocol: str) -> None:
    """Raises BadUse if a place is lacking or one too many; makes `shapes`."""
    if dataset not in DATASETS:
        raise BadUse(f"data.dataset {dataset!r} is unknown; known are {', '.join(DATASETS)}")
    if protocol and dataset not in PROTOCOLS:
        raise BadUse(f"data.protocol is {protocol!r}; data set {dataset!r} has but one: leave it")
    if dataset in PUBLISHED:
        if root:
            raise BadUse(
                f"data.root is {root}; data set {dataset!r} lies in data.annotations and"
                " data.videos"
            )
        if not annotations:
            raise BadUse(
                f"data.annotations is empty; data set {dataset!r} needs the directory of its"
                " annotation files there"
            )
        return
    for key, value in (("data.annotations", annotations), ("data.videos", videos)):
        if value:
            raise BadUse(f"{key} is {value}; data set {dataset!r} lies in data.root alone")
    if not root:
        raise BadUse(f"data.root is empty; data set {dataset!r} needs a directory there")
    if dataset == "shapes" and not os.path.exists(os.path.join(root, "captions.csv")):
        shapes.make(root)


def hold_out(clips: list[Clip], share: float, seed: int) -> list[Clip]:
    """The clips with a share of the training videos as val, unless there is such a split."""
    if any(clip.split == "val" for clip in clips):
        return clips

    def split(clip: Clip) -> str:
        digest = hashlib.sha256(f"{seed}/{files.video_id(clip)}".encode()).hexdigest()
        is_held = clip.split == "train" and int(digest[:8], 16) / 16**8 < share
        return "val" if is_held else clip.split

    return [dataclasses.replace(clip, split=split(clip)) for clip in clips]


def select(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of one split, in their order; raises BadData if there are none."""
    chosen = [clip for clip in clips if clip.split == split]
    if not chosen:
        sizes = collections.Counter(clip.split for clip in clips)
        there = ", ".join(f"{name} ({size} clips)" for name, size in sorted(sizes.items()))
        raise BadData(
            f"split {split!r} has no clips; there is {there or 'no clip at all'};"
            " in a folder of your own a column 'split' in captions.csv can say which videos"
            " belong to it"
        )
    return chosen
