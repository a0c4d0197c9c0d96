"""What a run reads: the clips that its config names, and their frames."""

import logging
import os
from collections.abc import Collection, Sequence

import grain
from ml_collections import ConfigDict

from data.annotations import DATASETS, OWN, PROTOCOLS, PUBLISHED, common, files, folder
from data.batches import frame_sources, pipeline, shared_memory
from data.batches.augment import open_augment
from data.checks.exclude import excluded_clips, read_ids
from data.checks.quick_check import require_sound
from data.errors import DataError, UsageError
from data.records import Annotations, Clip, DatasetLocation
from data.splits import clips_of_splits, hold_out
from data.storage import listing
from data.synthetic import shapes
from data.video.frame_choice import FrameChoice, head, uniform


def location_from_config(config: ConfigDict) -> DatasetLocation:
    """Where the data set of a config is."""
    data = config.data
    return DatasetLocation(
        dataset=data.dataset,
        root=data.root,
        annotations=data.annotations,
        videos=data.videos,
        protocol=data.protocol,
    )


def read_annotations(location: DatasetLocation) -> Annotations:
    """All annotations of every split; the path of a missing video is "".

    Generates the data set `shapes` in `location.root` if it is not there. Raises UsageError if
    the data set is unknown or its directory is not given, and whatever its reader raises.
    """
    _check_location(location)
    if location.dataset in PUBLISHED:
        return PUBLISHED[location.dataset](location)
    if location.dataset == "shapes":
        _generate_shapes(location.root)
    return folder.read(location)


def read_dataset(
    location: DatasetLocation,
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    exclude: frozenset[str] = frozenset(),
    splits: Collection[str] | None = None,
) -> list[Clip]:
    """The clips of every split, without those that `exclude` names.

    A data set without a validation split gets one: `val_fraction` of its training videos, see
    `hold_out`. The clips of `splits`, or all clips if it is None, must have a video file: raises
    DataError if files are missing.
    """
    _check_location(location)
    is_published = location.dataset in PUBLISHED
    if is_published and not location.videos and splits != ():
        raise UsageError(
            f"data.videos is empty; data set {location.dataset!r} needs the directory of its"
            " videos there"
        )
    annotations = read_annotations(location)
    for split, ids in annotations.uncaptioned.items():
        if ids:
            logging.warning(
                "%s: %d ids of %s have no captions and are skipped",
                location.annotations,
                len(ids),
                split,
            )
    clips = hold_out(common.without(annotations.clips, exclude), val_fraction, seed)
    needed = clips_of_splits(clips, splits)
    if is_published:
        _require_files(location.videos, needed)
    else:
        folder.require_files(location.root, needed)
    return clips


def _check_location(location: DatasetLocation) -> None:
    """Raises UsageError if a directory is not given, or one that the data set does not use is."""
    dataset = location.dataset
    if dataset not in DATASETS:
        raise UsageError(
            f"data.dataset {dataset!r} is unknown; data sets are {', '.join(DATASETS)}"
        )
    if location.protocol and dataset not in PROTOCOLS:
        raise UsageError(
            f"data.protocol is {location.protocol!r}; data set {dataset!r} has only one: leave"
            " data.protocol empty"
        )
    if dataset in OWN:
        for key, directory in (
            ("data.annotations", location.annotations),
            ("data.videos", location.videos),
        ):
            if directory:
                raise UsageError(f"{key} is {directory}; data set {dataset!r} uses data.root only")
        if not location.root:
            raise UsageError(f"data.root is empty; data set {dataset!r} needs a directory there")
        return
    if location.root:
        raise UsageError(
            f"data.root is {location.root}; data set {dataset!r} uses data.annotations and"
            " data.videos instead"
        )
    if not location.annotations:
        raise UsageError(
            f"data.annotations is empty; data set {dataset!r} needs the directory of its"
            " annotation files there"
        )


def _generate_shapes(root: str) -> None:
    with files.readable(root):
        is_there = listing.is_file(os.path.join(root, "captions.csv"))
    if not is_there:
        shapes.make_dataset(root)


def _require_files(videos: str, clips: Sequence[Clip]) -> None:
    missing = [clip.clip_id for clip in clips if not clip.path]
    if missing:
        raise DataError(
            f"{videos}: {len(missing)} of {len(clips)} videos are missing:"
            f" {common.name_missing(missing, videos)}; add the files or exclude the ids"
        )


def read_clips(config: ConfigDict) -> list[Clip]:
    """The clips of the data set that a config names, without those that `data.exclude` names."""
    return read_data(config)[0]


def read_data(
    config: ConfigDict, splits: Sequence[str] | None = None
) -> tuple[list[Clip], list[Clip]]:
    """The clips of the data set that a config names, and those that `data.exclude` excludes.

    The videos of `splits` must exist, or of all splits if it is None. May generate the data
    set `shapes`: in a run of several processes, one has to call this before the others.
    """
    location, val_fraction = location_from_config(config), config.data.val_fraction
    seed = config.seed if config.data.val_seed is None else config.data.val_seed
    ids = read_ids(config.data.exclude)
    clips = read_dataset(location, val_fraction=val_fraction, seed=seed, exclude=ids, splits=splits)
    excluded = []
    if ids:
        all_clips = hold_out(read_annotations(location).clips, val_fraction, seed)
        excluded = excluded_clips(all_clips, ids)
    return clips, excluded


def open_frame_source(
    config: ConfigDict, image_size: int, clips: Sequence[Clip]
) -> frame_sources.FrameSource:
    """The frames of `clips`, all of which are checked to be readable."""
    # A clip is listed twice if the checkpoint is chosen on the split that is evaluated.
    clips = list({clip.clip_id: clip for clip in clips}.values())
    if not config.data.shards:
        require_sound(clips)
    data = config.data
    return frame_sources.open_frames(
        clips,
        image_size,
        data.max_frames,
        data.shards,
        workers=data.workers,
        choice=frame_choice(config),
    )


def frame_choice(config: ConfigDict) -> FrameChoice:
    """Which frames of a clip are evaluated. Random ones are for training only, see `batches`."""
    return head if config.data.frame_choice == "head" else uniform


def padded_num_frames(config: ConfigDict, source: frame_sources.FrameSource, least: int = 0) -> int:
    """How many frames the clips of a batch are padded to, `least` or more.

    Where padding is masked, it is no more than the longest clip has: the masked frames change a
    score by rounding only.
    """
    frames = config.data.max_frames
    return min(frames, max(least, source.longest)) if config.similarity.mask_padding else frames


def batches(
    config: ConfigDict,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    num_frames: int,
    *,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """An endless iterator of this process's training batches, for a resolved config; clips are
    padded to `num_frames`.

    They have clip ids if the loss needs them. The frames are those of `source`, unless they are
    chosen at random.
    """
    frames: frame_sources.FrameSource | frame_sources.RandomFrames = source
    if config.data.frame_choice == "random_in_segment":
        frames = frame_sources.RandomFrames(clips, source.size, config.data.max_frames, config.seed)
    batch_size = config.train.batch_size // process_count
    if config.data.workers:
        batch_bytes = batch_size * num_frames * source.size**2 * 3
        shared_memory.require_space(config.data.workers, batch_bytes)
    numbered = pipeline.numbered_batches(
        clips,
        frames,
        num_frames,
        config.data.max_words,
        batch_size=batch_size,
        seed=config.seed,
        host_index=process_index,
        host_count=process_count,
        augment=open_augment(config.seed, **config.augment),
        sampling=config.data.sampling,
        with_clip_ids=config.loss.same_video != "negative",
    )
    return pipeline.train_batches(numbered, config.data.workers)
