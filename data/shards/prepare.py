"""Shards: every clip decoded once and stored in ArrayRecord files that TFDS reads.

`prepare` writes DESTINATION/clips/1.0.0/, with one TFDS split for each split of the data set,
and `reader.py` reads it. An example is

    clip_id   text
    frames    uint8 [n, size, size, 3] RGB, n <= max_frames
    captions  texts

The files are written to DESTINATION/clips/incomplete.*, and moved to their directory when
all are finished, together with the fingerprint (`metadata.json`). So shards under their final
name are always complete, and the next `prepare` resumes with what a killed one has finished.
In a bucket, where nothing can be moved, they are complete if there is a `metadata.json`.

Frames are stored raw. In random access, clips of drawings (3 frames of 224 px) take 35%
of their size and 0.5 ms raw, as ArrayRecord compresses by itself; 33% and 1.4 ms with
zlib, 24% and 3.8 ms as PNG, 7% and 1.3 ms as JPEG of quality 95, which changes the pixels.
Camera recordings take 78%, 73%, 56% and 16%.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from data.checks.quick_check import refusal
from data.errors import DataError, UsageError
from data.records import Broken, Clip
from data.shards import beam, builder, staging, writer
from data.shards.builder import Clips
from data.shards.fingerprint import fingerprint
from data.shards.reader import location_of, read_fingerprint
from data.storage import files as storage
from data.storage import listing
from data.storage.path import Path, is_bucket
from data.video import inspection
from data.worker_pool import IsolatedProcess

SAMPLE = 8  # clips that are decoded to estimate the disk space that all need

Progress = Callable[[int, int], None]  # (clips done, number of clips)

log = logging.getLogger(__name__)


def finished(directory: str) -> bool:
    """Whether `directory` contains complete shards, of any clips."""
    return read_fingerprint(directory) is not None


def prepare(
    clips: Sequence[Clip],
    destination: str,
    size: int,
    max_frames: int,
    *,
    progress: Progress | None = None,
    workers: int = 0,
    beam_options: str = "",
) -> dict[str, Any]:
    """Decodes every clip to at most `max_frames` frames of `size` px and writes the shards.

    This is done by `workers` processes, one per core if 0, or by Apache Beam if there are
    options for it; the shards are the same. After a kill, the next call keeps the shards that
    were finished. Complete shards of the same clips, size and frames are left untouched.
    Returns {"directory", "splits": {split: number of clips}, "bytes", "written"}; `written`
    is False if the shards existed already. Only one run at a time may write to a destination.

    Raises DataError if there are no clips, or if some are broken. All clips are checked first:
    the message has the number of broken ones and the first of them, and nothing is left on
    the disk. A clip is broken if `doctor` reports it; a clip that crashes or hangs the decoder
    does so in a process of its own. Raises UsageError if the destination contains other
    shards, is not writable or has less free space than a sample of the clips suggests.
    """
    if not clips:
        raise DataError("there are no clips to prepare")
    location = location_of(destination)
    existing = read_fingerprint(destination)
    wanted = fingerprint(clips, size, max_frames, existing)
    if existing and existing != wanted:
        other = [key for key in ("size", "frames", "clips") if existing[key] != wanted[key]]
        raise UsageError(
            f"{destination} contains shards with other {', '.join(other)} ({existing['frames']} "
            f"frames of {existing['size']} px): choose another directory or delete this one"
        )
    try:
        if not existing:
            _write(
                clips,
                wanted,
                destination,
                progress or (lambda done, total: None),
                workers=workers,
                beam_options=beam_options,
            )
        _remove_staging(destination)
    except OSError as error:
        explained = _explain(error, destination)
        if explained is None:
            raise
        raise explained from error
    return {
        "directory": destination,
        "splits": {split: len(ids) for split, ids in wanted["clip_ids"].items()},
        "bytes": sum(listing.sizes(location / name for name in storage.names(location)).values()),
        "written": not existing,
    }


def _explain(error: OSError, destination: str) -> UsageError | None:
    """What an error means if it is of the destination; None if it is not."""
    # Such as too many open files.
    is_inside = str(error.filename or "").startswith(destination)
    if not is_inside and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    if isinstance(error, FileNotFoundError) and "/incomplete." in str(error.filename):
        return UsageError(
            f"{destination}: another `prepare` works there, and has moved {error.filename}; "
            "wait until it ends"
        )
    return UsageError(f"cannot write shards to {destination}: {error.strerror or error}")


def _write(
    clips: Sequence[Clip],
    wanted: dict[str, Any],
    destination: str,
    progress: Progress,
    *,
    workers: int,
    beam_options: str,
) -> None:
    dataset = Clips(clips=clips, fingerprint=wanted, data_dir=destination)
    location = location_of(destination)
    key = hashlib.sha256(json.dumps([wanted, builder.SHARD_BYTES]).encode()).hexdigest()[:16]
    stage = staging.Staging.of(location, f"incomplete.{key}")
    tasks_of_splits = dataset.tasks(stage)
    tasks = [task for split in tasks_of_splits.values() for task in split]
    _remove_staging(destination, keep=stage.folder)
    _require_disk_space(dataset, clips, location, tasks)
    new_folders = [
        path for path in (location.parent, Path(destination)) if not listing.is_folder(path)
    ]
    staging.make(stage)
    if beam_options:
        broken = beam.write_shards(tasks, beam_options)
        progress(len(clips), len(clips))
    else:
        processes = workers or len(os.sched_getaffinity(0))
        broken = writer.write_shards(
            tasks, inspection.decode_checked, processes, lambda done: progress(done, len(clips))
        )
    if broken:
        storage.remove_tree(stage.folder)
        if is_bucket(destination):
            storage.remove_tree(location)
        else:
            for path in new_folders:
                path.rmdir()
        raise refusal(broken, len(clips))
    staging.publish(
        stage,
        [task.name for task in tasks],
        location,
        lambda folder: dataset.write_info(tasks_of_splits, folder),
    )


def _remove_staging(destination: str, keep: Path | None = None) -> None:
    """Removes the staging folders that killed runs left behind, except `keep`."""
    folder = location_of(destination).parent
    for path in (folder / name for name in staging.names_in(folder)):
        if path.name.startswith("incomplete.") and path != keep:
            if keep:
                log.info("%s: removed, its unfinished shards have other clips or sizes", path)
            storage.remove_tree(path)


def _require_disk_space(
    dataset: Clips, clips: Sequence[Clip], location: Path, tasks: list[writer.ShardTask]
) -> None:
    """Logs how much disk space is needed; raises UsageError if less is free."""
    finished = staging.read_all_stats(tasks[0].staging, [task.name for task in tasks])
    remaining = len(clips) - sum(stats["examples"] for stats in finished if stats)
    if not remaining:
        return
    size, max_frames = dataset.info.metadata["size"], dataset.info.metadata["frames"]
    sample = clips[:: -(-len(clips) // SAMPLE)]
    with (
        tempfile.TemporaryDirectory() as folder,
        IsolatedProcess(inspection.decode_checked) as decoder,
    ):
        path = Path(folder, "sample")
        results = builder.examples(sample, size, max_frames, decoder.each)
        good = (result for result in results if not isinstance(result, Broken))
        count = writer.write_records(path, good, dataset.info.features)
        needed = storage.stat(path).size * remaining // max(count, 1)
    uncompressed = remaining * max_frames * size * size * 3
    need = (
        f"{remaining} clips need about {_format_bytes(needed)} "
        f"(their frames at most {_format_bytes(uncompressed)})"
    )
    if is_bucket(location):
        log.info("%s: %s", location.parents[1], need)
        return
    existing = next(path for path in location.parents if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(
            f"{existing} has {_format_bytes(free)} free, {need}: "
            "free some disk space or choose another directory"
        )
    log.info("%s: %s, %s are free", location.parents[1], need, _format_bytes(free))


def _format_bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
