"""Shards: every clip decoded once, kept in ArrayRecord files that TFDS reads.

`prepare` writes DESTINATION/clips/1.0.0/, one TFDS split per split of ours, and
`open_shards` reads it. An example is

    clip_id   text
    frames    uint8 [n, size, size, 3] RGB, n <= frames
    captions  texts

The files are made in DESTINATION/clips/incomplete.*, and get their directory's name when
all is there, the fingerprint (`metadata.json`) with it. So a set under its own name is
always whole, and what a killed `prepare` has finished is there for the next.

Frames are stored raw. Read at random, clips of drawings (3 frames of 224 px) take 35%
of their size and 0.5 ms raw, as ArrayRecord compresses by itself; 33% and 1.4 ms with
zlib, 24% and 3.8 ms as PNG, 7% and 1.3 ms as JPEG of quality 95, whose pixels are not
those of the files. Camera pictures take 78%, 73%, 56% and 16%.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data.checks.quick_check import refusal
from data.errors import DataError, UsageError
from data.records import Broken, Clip
from data.shards import beam, builder, writer
from data.shards.builder import Clips
from data.shards.fingerprint import changed_clips, fingerprint
from data.video import inspection
from data.worker_pool import IsolatedProcess

SAMPLE = 8  # clips that are decoded to estimate the room that all need

Progress = Callable[[int, int], None]  # clips done, clips in all

log = logging.getLogger(__name__)


def _location(directory: str) -> Path:
    return Path(directory, Clips.name, str(Clips.VERSION))


def _read_fingerprint(directory: str) -> dict | None:
    """The fingerprint of the whole set in `directory`; None if there is no whole set."""
    try:
        found = json.loads((_location(directory) / "metadata.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if "texts" not in found:
        raise UsageError(
            f"{directory} holds shards of an older form: delete it, run `prepare` again"
        )
    return found


def finished(directory: str) -> bool:
    """Whether `directory` holds a whole set of shards, of whatever clips."""
    return _read_fingerprint(directory) is not None


def prepare(
    clips: Sequence[Clip],
    destination: str,
    size: int,
    frames: int,
    progress: Progress | None = None,
    workers: int = 0,
    beam_options: str = "",
) -> dict:
    """Decodes every clip to at most `frames` pictures of `size` px and writes the shards.

    `workers` processes do so, one a core if 0, or Apache Beam if there are options for it;
    the shards are the same.
    Killed and called again, it goes on after the files that were finished. Shards that
    are whole and of the same clips, size and frames are left as they are. Returns
    {"directory", "splits": {split: clips}, "bytes", "written"}, `written` being False
    where the shards were there already. One run at a time may write to a destination.

    Raises DataError if there are no clips or some are broken, once all are looked at: how
    many, and the first of them (nothing is left then). A clip is broken if `doctor` says
    so; one that crashes or hangs the decoder costs its own process alone. Raises UsageError
    if the destination holds other shards, cannot be written to or lacks the room that a
    sample of the clips says is needed.
    """
    if not clips:
        raise DataError("there are no clips to prepare")
    found = _read_fingerprint(destination)
    wanted = fingerprint(clips, size, frames, found)
    if found and found != wanted:
        other = [key for key in ("size", "frames", "clips") if found[key] != wanted[key]]
        raise UsageError(
            f"{destination} holds shards made with other {', '.join(other)} ({found['frames']} "
            f"frames of {found['size']} px): name another directory or delete this one"
        )
    try:
        if not found:
            _write(clips, wanted, destination, progress, workers, beam_options)
        _remove_leftovers(destination)
    except OSError as error:
        raise UsageError(f"cannot write shards to {destination}: {error}") from error
    return {
        "directory": destination,
        "splits": {split: len(ids) for split, ids in wanted["clip_ids"].items()},
        "bytes": sum(path.stat().st_size for path in _location(destination).iterdir()),
        "written": not found,
    }


def _write(
    clips: Sequence[Clip],
    wanted: dict,
    destination: str,
    progress: Progress | None,
    workers: int,
    beam_options: str,
) -> None:
    maker = Clips(clips=clips, fingerprint=wanted, data_dir=destination)
    whole = _location(destination)
    key = hashlib.sha256(json.dumps([wanted, builder.SHARD_BYTES]).encode()).hexdigest()[:16]
    folder = whole.with_name(f"incomplete.{key}")
    tasks = maker.tasks(folder)
    todo = [task for files in tasks.values() for task in files]
    _remove_leftovers(destination, keep=folder)
    _require_room(maker, clips, whole, todo)
    new = [path for path in (whole.parent, Path(destination)) if not path.exists()]
    writer.prepare_folder(folder)
    report = progress or (lambda done, total: None)
    if beam_options:
        broken = beam.write_shards(todo, beam_options)
        report(len(clips), len(clips))
    else:
        count = workers or len(os.sched_getaffinity(0))
        show = lambda done: report(done, len(clips))  # noqa: E731
        broken = writer.write_shards(todo, inspection.decode_checked, count, show)
    if broken:
        shutil.rmtree(folder)
        for path in new:
            path.rmdir()
        raise refusal(broken, len(clips))
    writer.publish(folder, todo, whole, lambda directory: maker.write_info(tasks, directory))


def _remove_leftovers(destination: str, keep: Path | None = None) -> None:
    """Removes what killed runs have left, but for the folder `keep`."""
    for left in _location(destination).parent.glob("incomplete.*"):
        if left != keep:
            if keep:
                log.info("%s: removed, its unfinished shards are of other clips or sizes", left)
            shutil.rmtree(left)


def _require_room(
    maker: Clips, clips: Sequence[Clip], whole: Path, todo: list[writer.ShardTask]
) -> None:
    """Says how much room is needed; raises UsageError if there is less."""
    found = [writer.read_stats(task.folder, task.name) for task in todo]
    left = len(clips) - sum(facts["examples"] for facts in found if facts)
    if not left:
        return
    size, frames = maker.info.metadata["size"], maker.info.metadata["frames"]
    sample = clips[:: -(-len(clips) // SAMPLE)]
    with (
        tempfile.TemporaryDirectory() as folder,
        IsolatedProcess(inspection.decode_checked) as guard,
    ):
        path = Path(folder, "sample")
        found = builder.examples(sample, size, frames, guard.each)
        sound = (item for item in found if not isinstance(item, Broken))
        count = writer.write_records(path, sound, maker.info.features)
        needed = path.stat().st_size * left // max(count, 1)
    place = next(path for path in whole.parents if path.exists())
    free = shutil.disk_usage(place).free
    most = left * frames * size * size * 3
    told = f"{left} clips need about {_amount(needed)} (their pictures at most {_amount(most)})"
    if needed > free:
        raise UsageError(
            f"{place} has {_amount(free)} free, {told}: make room or name another directory"
        )
    log.info("%s: %s, %s are free", whole.parents[1], told, _amount(free))


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


class Shards:
    """One split, read at random: item i is {"clip_id", "frames", "captions"} of clip i.

    `frames` is uint8 [n, size, size, 3], `captions` a tuple of str. `clip_ids` lists
    the clips in order; `size` and `frames` say how they were prepared. Pickles small
    and may be read by several threads. Reading raises DataError where a file is broken.
    """

    def __init__(self, source, directory: str, split: str, prepared: dict):
        self._source = source
        self._directory = directory
        self.clip_ids: list[str] = prepared["clip_ids"][split]
        self.size: int = prepared["size"]
        self.frames: int = prepared["frames"]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, i: int) -> dict:
        try:
            example = self._source[i]
        except RuntimeError as error:  # what ArrayRecord raises where a checksum is wrong
            raise DataError(
                f"{self._directory}: clip {self.clip_ids[i]} cannot be read ({error}): "
                "copy or prepare the shards again"
            ) from error
        clip_id = example["clip_id"].decode()
        if clip_id != self.clip_ids[i]:
            message = f"clip {clip_id} in the place of {self.clip_ids[i]}: prepare the shards again"
            raise DataError(f"{self._directory}: {message}")
        captions = tuple(caption.decode() for caption in example["captions"])
        return {"clip_id": clip_id, "frames": example["frames"], "captions": captions}


def open_shards(directory: str, split: str, clips: Sequence[Clip] = ()) -> Shards:
    """Opens one split of what `prepare` wrote to `directory`.

    Raises UsageError if there is no whole set or it has no such split, DataError if files
    of it are missing or cut short, as after a copy that was broken off, or if `clips`
    of this split have changed since.
    """
    prepared = _read_fingerprint(directory)
    if prepared is None:
        raise UsageError(f"{directory} holds no finished shards: run `prepare` first")
    if split not in prepared["clip_ids"]:
        there = ", ".join(prepared["clip_ids"])
        raise UsageError(f"{directory} holds no split {split}, only {there}: run `prepare` with it")
    if changed := changed_clips(prepared, split, clips):
        first = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise DataError(
            f"{directory}: {len(changed)} clips of the split {split} are not as they were "
            f"prepared: {first}; undo the change or run `prepare` into another directory"
        )
    opened = tfds.builder_from_directory(_location(directory))
    info = opened.info.splits[split]
    held = sum(os.path.getsize(path) for path in info.filepaths if os.path.exists(path))
    if held != info.num_bytes:
        raise DataError(
            f"{directory}: files of the split {split} are missing or cut short: "
            "copy or prepare the shards again"
        )
    return Shards(opened.as_data_source(split), directory, split, prepared)
