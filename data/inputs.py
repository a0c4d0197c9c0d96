"""What a run reads: the clips that its config names, and where their pictures come from."""

import logging
import os
from collections.abc import Collection, Sequence

import grain
from ml_collections import ConfigDict

from data.annotations import DATASETS, OWN, PROTOCOLS, PUBLISHED, common, folder
from data.batches import frame_sources, pipeline
from data.batches.augment import open_augment
from data.checks.exclude import excluded_clips, read_ids
from data.checks.quick_check import require_sound
from data.errors import DataError, UsageError
from data.records import Annotations, Clip
from data.splits import clips_of_splits, hold_out
from data.synthetic import shapes


def read_annotations(
    dataset: str, root: str, annotations: str, videos: str, protocol: str = ""
) -> Annotations:
    """All that the annotation files tell, of every split; a missing video's path is "".

    `folder` and `shapes` lie in `root`; `shapes` is made there if it is not there yet. The
    published data sets have their `annotations` and `videos` in directories of their own,
    of which `videos` may be "" for none. `protocol` says which of a data set's splits are
    meant. Raises UsageError if the data set is unknown or its directory is not given, and what
    its reader raises.
    """
    _check_location(dataset, root, annotations, videos, protocol)
    if dataset in OWN:
        return Annotations(folder.read_all(root), {}, [])
    return PUBLISHED[dataset](annotations, videos, protocol)


def read_dataset(
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
    so it stays where it is when others come or go. Raises DataError if files are missing.
    """
    _check_location(dataset, root, annotations, videos, protocol)
    if dataset in OWN:
        clips = common.without(folder.read_all(root), exclude)
        clips = hold_out(clips, held_out, seed)
        folder.require_files(root, clips_of_splits(clips, splits))
        return clips
    if not videos and splits != ():
        raise UsageError(
            f"data.videos is empty; data set {dataset!r} needs the directory of its videos there"
        )
    found = PUBLISHED[dataset](annotations, videos, protocol)
    for split, ids in found.uncaptioned.items():
        if ids:
            logging.warning(
                "%s: %d ids of %s have no captions and are left out", annotations, len(ids), split
            )
    clips = hold_out(common.without(found.clips, exclude), held_out, seed)
    needed = clips_of_splits(clips, splits)
    absent = [clip.clip_id for clip in needed if not clip.path]
    if absent:
        first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise DataError(
            f"{videos}: {len(absent)} of {len(needed)} videos are missing: {first};"
            " add the files or exclude the ids"
        )
    return clips


def _check_location(dataset: str, root: str, annotations: str, videos: str, protocol: str) -> None:
    """Raises UsageError if a place is lacking or one too many; makes `shapes`."""
    if dataset not in DATASETS:
        raise UsageError(f"data.dataset {dataset!r} is unknown; known are {', '.join(DATASETS)}")
    if protocol and dataset not in PROTOCOLS:
        raise UsageError(
            f"data.protocol is {protocol!r}; data set {dataset!r} has but one: leave it"
        )
    if dataset in PUBLISHED:
        if root:
            raise UsageError(
                f"data.root is {root}; data set {dataset!r} lies in data.annotations and"
                " data.videos"
            )
        if not annotations:
            raise UsageError(
                f"data.annotations is empty; data set {dataset!r} needs the directory of its"
                " annotation files there"
            )
        return
    for key, value in (("data.annotations", annotations), ("data.videos", videos)):
        if value:
            raise UsageError(f"{key} is {value}; data set {dataset!r} lies in data.root alone")
    if not root:
        raise UsageError(f"data.root is empty; data set {dataset!r} needs a directory there")
    if dataset == "shapes" and not os.path.exists(os.path.join(root, "captions.csv")):
        shapes.make_dataset(root)


def read_clips(config: ConfigDict) -> list[Clip]:
    """The clips of the data set a config names, but for those that `data.exclude` leaves out."""
    return read_data(config)[0]


def read_data(
    config: ConfigDict, splits: Sequence[str] | None = None
) -> tuple[list[Clip], list[Clip]]:
    """The clips of the data set a config names, and those that `data.exclude` leaves out.

    The videos of `splits` must be there, of all splits if it is None. May have to make the
    data set: of several processes, one must be ahead of the others.
    """
    data = config.data
    ids = read_ids(data.exclude)
    place = data.dataset, data.root, data.annotations, data.videos, data.protocol
    clips = read_dataset(*place, data.val_fraction, config.seed, ids, splits)
    excluded = []
    if ids:
        everything = read_annotations(*place).clips
        everything = hold_out(everything, data.val_fraction, config.seed)
        excluded = excluded_clips(everything, ids)
    return clips, excluded


def open_frame_source(
    config: ConfigDict, image_size: int, clips: Sequence[Clip]
) -> frame_sources.FrameSource:
    """Pictures of `clips`, which are known to be readable from here on."""
    clips = list({clip.clip_id: clip for clip in clips}.values())  # a split may play two parts
    if not config.data.shards:
        require_sound(clips)
    data = config.data
    return frame_sources.open_frames(
        clips, image_size, data.max_frames, data.shards, workers=data.workers
    )


def padded_num_frames(config: ConfigDict, source: frame_sources.FrameSource, least: int = 0) -> int:
    """How many frames the clips of a batch are padded to, `least` or more of them.

    No more than the longest clip has, for padding is masked: it changes a score by rounding.
    """
    frames = config.data.max_frames
    return min(frames, max(least, source.longest)) if config.similarity.mask_padding else frames


def batches(
    config: ConfigDict,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    width: int,
    *,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """The endless batches of training that a resolved config asks for, this process's part:
    of clips of `width` frames."""
    numbered = pipeline.numbered_batches(
        clips,
        source,
        width,
        config.data.max_words,
        batch_size=config.train.batch_size // process_count,
        seed=config.seed,
        host_index=process_index,
        host_count=process_count,
        augment=open_augment(config.seed, **config.augment),
    )
    return pipeline.train_batches(numbered, config.data.workers)
