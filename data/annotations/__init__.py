"""One small reader a data set; all of them return the same records."""

import collections
import os

from data import shapes
from data.annotations import folder
from data.records import Annotations, Clip
from hvp_jax.errors import BadData, BadUse

DATASETS = ("folder", "shapes")


def read(
    dataset: str, root: str, annotations: str, videos: str, exclude: frozenset[str] = frozenset()
) -> list[Clip]:
    """The clips of a data set, of every split, but for those whose ids are in `exclude`."""
    found = read_all(dataset, root, annotations, videos)
    return [clip for clip in found.clips if clip.clip_id not in exclude]


def read_all(dataset: str, root: str, annotations: str, videos: str) -> Annotations:
    """All that is told of a data set; the path of a clip without a file is empty.

    `folder` and `shapes` lie in `root`; `shapes` is made there if it is not there yet. The
    published data sets have their `annotations` and `videos` in directories of their own.
    Raises BadUse if the data set is unknown or its directory is not given, and what its
    reader raises.
    """
    if dataset not in DATASETS:
        raise BadUse(f"data.dataset {dataset!r} is unknown; known are {', '.join(DATASETS)}")
    for key, value in (("data.annotations", annotations), ("data.videos", videos)):
        if value:
            raise BadUse(f"{key} is {value}; data set {dataset!r} lies in data.root alone")
    if not root:
        raise BadUse(f"data.root is empty; data set {dataset!r} needs a directory there")
    if dataset == "shapes" and not os.path.exists(os.path.join(root, "captions.csv")):
        shapes.make(root)
    return Annotations(folder.read(root), {}, [])


def select(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of one split, in their order; raises BadData if there are none."""
    chosen = [clip for clip in clips if clip.split == split]
    if not chosen:
        sizes = collections.Counter(clip.split for clip in clips)
        there = ", ".join(f"{name} ({size} clips)" for name, size in sorted(sizes.items()))
        raise BadData(
            f"split {split!r} has no clips; there is {there or 'no clip at all'};"
            " a column 'split' in captions.csv can say which videos belong to it"
        )
    return chosen
