"""Shards: every clip decoded once, kept in ArrayRecord files that TFDS writes and reads.

`prepare` writes DESTINATION/clips/1.0.0/, one TFDS split per split of ours, and
`open_shards` reads it. An example is

    clip_id   text
    frames    uint8 [n, size, size, 3] RGB, n <= frames
    captions  texts

TFDS writes into a directory of another name and renames it when all is there, the
fingerprint (`metadata.json`) with it, so a set under its own name is always whole.

Frames are stored raw. Read at random, clips of drawings (3 frames of 224 px) take 35%
of their size and 0.5 ms raw, as ArrayRecord compresses by itself; 33% and 1.4 ms with
zlib, 24% and 3.8 ms as PNG, 7% and 1.3 ms as JPEG of quality 95, whose pixels are not
those of the files. Camera pictures take 78%, 73%, 56% and 16%.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data.records import Clip
from data.video import read_frames
from hvp_jax.errors import BadData, BadUse

# One file holds about this much before compression. TFDS keeps the examples of the
# file being written in memory, so this also bounds the memory of `prepare`.
SHARD_BYTES = 128 << 20

Progress = Callable[[int, int], None]  # clips done, clips in all


def decode(clip: Clip, size: int, frames: int) -> np.ndarray:
    """Pictures of a clip, uint8 [n, size, size, 3] RGB, 1 <= n <= frames.

    Raises BadData, naming the clip, where its file is missing, broken or has no picture.
    """
    try:
        return read_frames(clip.path, size, frames, clip.start, clip.end)
    except BadData as error:
        raise BadData(f"clip {clip.clip_id}: {error}") from error


class Clips(tfds.core.ShardBasedBuilder):
    """Writes clips shard by shard, in their own order, so that place i is clip i.

    A shard is a function of its own clips alone. GeneratorBasedBuilder will not do:
    it sorts what it gets, and beyond 1 GB a split it needs TensorFlow for that.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for a file of checksums beside this one would need
    # `importlib_resources`, which TFDS uses and does not install.
    url_infos = None

    def __init__(self, *, clips, fingerprint: dict, progress: Progress | None, data_dir: str):
        self._clips: Sequence[Clip] = clips
        self._fingerprint = fingerprint
        self._size, self._frames = fingerprint["size"], fingerprint["frames"]
        self._progress = progress
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (None, self._size, self._size, 3)
        features = {
            "clip_id": tfds.features.Text(),
            "frames": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        metadata = tfds.core.MetadataDict(self._fingerprint)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), metadata=metadata
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        step = max(1, SHARD_BYTES // (self._frames * self._size**2 * 3))
        done = itertools.count(1)
        shards: dict[str, list[Callable]] = {}
        for split in self._fingerprint["clip_ids"]:
            clips = [clip for clip in self._clips if clip.split == split]
            shards[split] = [
                functools.partial(self._examples, clips[first : first + step], done)
                for first in range(0, len(clips), step)
            ]
        return shards

    def _examples(self, clips: Sequence[Clip], done: Iterator[int]) -> Iterator:
        for clip in clips:
            pictures = decode(clip, self._size, self._frames)
            texts = list(clip.captions)
            yield clip.clip_id, {"clip_id": clip.clip_id, "frames": pictures, "captions": texts}
            if self._progress:
                self._progress(next(done), len(self._clips))


def _fingerprint(clips: Sequence[Clip], size: int, frames: int) -> dict:
    """What the shards follow from; other values mean other shards.

    Of the video files the sizes are in it, but no paths and no times: shards stay
    good when the data set is copied to another place.
    """
    digest = hashlib.sha256()
    clip_ids: dict[str, list[str]] = {}
    for clip in clips:
        try:
            length = os.path.getsize(clip.path)
        except OSError as error:
            raise BadData(f"clip {clip.clip_id}: {clip.path}: {error.strerror}") from error
        facts = [clip.clip_id, clip.split, clip.start, clip.end, clip.captions, length]
        digest.update(json.dumps(facts).encode())
        clip_ids.setdefault(clip.split, []).append(clip.clip_id)
    return {"size": size, "frames": frames, "clips": digest.hexdigest(), "clip_ids": clip_ids}


def _location(directory: str) -> Path:
    return Path(directory, Clips.name, str(Clips.VERSION))


def _read_fingerprint(directory: str) -> dict | None:
    """The fingerprint of the whole set in `directory`; None if there is no whole set."""
    try:
        return json.loads((_location(directory) / "metadata.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def prepare(
    clips: Sequence[Clip],
    destination: str,
    size: int,
    frames: int,
    progress: Progress | None = None,
) -> dict:
    """Decodes every clip to at most `frames` pictures of `size` px and writes the shards.

    Shards that are whole and of the same clips, size and frames are left as they are.
    Returns {"directory", "splits": {split: clips}, "bytes", "written"}, `written`
    being False where the shards were there already. One run at a time may write to a
    destination.

    Raises BadData if there are no clips or one cannot be decoded (no shards are left
    then), BadUse if the destination holds other shards or cannot be written to.
    """
    if not clips:
        raise BadData("there are no clips to prepare")
    wanted = _fingerprint(clips, size, frames)
    found = _read_fingerprint(destination)
    if found is None:
        try:
            os.makedirs(destination, exist_ok=True)
            for left_by_kill in Path(destination, Clips.name).glob("incomplete.*"):
                shutil.rmtree(left_by_kill)
        except OSError as error:
            raise BadUse(f"cannot write shards to {destination}: {error}") from error
        _write(Clips(clips=clips, fingerprint=wanted, progress=progress, data_dir=destination))
    elif found != wanted:
        other = [key for key in ("size", "frames", "clips") if found[key] != wanted[key]]
        raise BadUse(
            f"{destination} holds shards made with other {', '.join(other)} ({found['frames']} "
            f"frames of {found['size']} px): name another directory or delete this one"
        )
    return {
        "directory": destination,
        "splits": {split: len(ids) for split, ids in wanted["clip_ids"].items()},
        "bytes": sum(path.stat().st_size for path in _location(destination).iterdir()),
        "written": found is None,
    }


def _write(builder: Clips) -> None:
    tfds.disable_progress_bar()
    # TFDS speaks of downloads on stdout, which belongs to the program's own answer, and
    # wants a directory for them, though there are none.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )


class Shards:
    """One split, read at random: item i is {"clip_id", "frames", "captions"} of clip i.

    `frames` is uint8 [n, size, size, 3], `captions` a tuple of str. `clip_ids` lists
    the clips in order; `size` and `frames` say how they were prepared. Pickles small
    and may be read by several threads. Reading raises BadData where a file is broken.
    """

    def __init__(self, source, directory: str, split: str, fingerprint: dict):
        self._source = source
        self._directory = directory
        self.clip_ids: list[str] = fingerprint["clip_ids"][split]
        self.size: int = fingerprint["size"]
        self.frames: int = fingerprint["frames"]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, i: int) -> dict:
        try:
            example = self._source[i]
        except RuntimeError as error:  # what ArrayRecord raises where a checksum is wrong
            raise BadData(
                f"{self._directory}: clip {self.clip_ids[i]} cannot be read ({error}): "
                "copy or prepare the shards again"
            ) from error
        clip_id = example["clip_id"].decode()
        if clip_id != self.clip_ids[i]:
            message = f"clip {clip_id} in the place of {self.clip_ids[i]}: prepare the shards again"
            raise BadData(f"{self._directory}: {message}")
        captions = tuple(caption.decode() for caption in example["captions"])
        return {"clip_id": clip_id, "frames": example["frames"], "captions": captions}


def open_shards(directory: str, split: str) -> Shards:
    """Opens one split of what `prepare` wrote to `directory`.

    Raises BadUse if there is no whole set or it has no such split, BadData if files
    of it are missing or cut short, as after a copy that was broken off.
    """
    fingerprint = _read_fingerprint(directory)
    if fingerprint is None:
        raise BadUse(f"{directory} holds no finished shards: run `prepare` first")
    if split not in fingerprint["clip_ids"]:
        there = ", ".join(fingerprint["clip_ids"])
        raise BadUse(f"{directory} holds no split {split}, only {there}: run `prepare` with it")
    builder = tfds.builder_from_directory(_location(directory))
    info = builder.info.splits[split]
    held = sum(os.path.getsize(path) for path in info.filepaths if os.path.exists(path))
    if held != info.num_bytes:
        raise BadData(
            f"{directory}: files of the split {split} are missing or cut short: "
            "copy or prepare the shards again"
        )
    return Shards(builder.as_data_source(split), directory, split, fingerprint)
