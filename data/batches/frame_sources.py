"""Where the frames of a clip come from: its file, the memory, or shards."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from data.errors import DataError, UsageError
from data.records import Clip
from data.shards.reader import open_shards
from data.storage.path import is_bucket
from data.video.decode import read_frames
from data.video.frame_choice import FrameChoice, random_in_segment, uniform

# The frames of a data set are kept in memory if they need no more bytes than this.
MEMORY_LIMIT = 2 << 30
# That read a batch from a bucket, over all processes of a machine: a request takes tens of
# milliseconds and hardly any processor time.
BUCKET_THREADS = 32

Frames = UInt8[np.ndarray, "n s s 3"]


@runtime_checkable
class FrameSource(Protocol):
    """Maps the id of a clip to its frames, RGB."""

    size: int  # of a frame, in pixels
    longest: int  # no clip has more frames

    def __getitem__(self, clip_id: str) -> Frames: ...


class FileFrames:
    """Decodes the files at every access.

    Raises DataError with the id of the clip if a file is missing or broken.
    """

    def __init__(
        self, clips: Sequence[Clip], size: int, max_frames: int, choice: FrameChoice = uniform
    ):
        self.size, self.longest = size, max_frames
        self.waits = any(is_bucket(clip.path) for clip in clips)
        self._clips = {clip.clip_id: clip for clip in clips}
        self._choice = choice

    def __getitem__(self, clip_id: str) -> Frames:
        return self._read(clip_id, self._choice)

    def _read(self, clip_id: str, choice: FrameChoice) -> Frames:
        clip = self._clips[clip_id]
        try:
            return read_frames(
                clip.path, self.size, self.longest, start=clip.start, end=clip.end, choice=choice
            )
        except DataError as error:
            raise DataError(f"clip {clip_id}: {error}") from error


class RandomFrames(FileFrames):
    """Frames for training, other ones each time that a clip is an example.

    They depend only on the seed and the position of the example in the training stream.
    """

    def __init__(self, clips: Sequence[Clip], size: int, max_frames: int, seed: int):
        super().__init__(clips, size, max_frames)
        self._seed = seed

    def at(self, clip_id: str, position: int) -> Frames:
        """Random frames of the clip that is the example at `position`."""
        rng = np.random.default_rng((self._seed, position))
        return self._read(clip_id, random_in_segment(rng))


class MemoryFrames:
    """Decodes all clips once and keeps their frames, for small data sets (MEMORY_LIMIT).

    `longest` is the actual number of frames of the longest clip.
    """

    def __init__(
        self, clips: Sequence[Clip], size: int, max_frames: int, choice: FrameChoice = uniform
    ):
        files = FileFrames(clips, size, max_frames, choice)
        ids = [clip.clip_id for clip in clips]
        with ThreadPoolExecutor(num_threads(files)) as pool:
            decoded = tqdm(pool.map(files.__getitem__, ids), "decoding", len(ids), leave=False)
            self._frames = dict(zip(ids, decoded, strict=True))
        self.size = size
        self.longest = max(map(len, self._frames.values()), default=1)

    def __getitem__(self, clip_id: str) -> Frames:
        return self._frames[clip_id]


class ShardFrames:
    """Reads the shards that `prepare` wrote.

    Raises UsageError if the shards have another size or number of frames, DataError if
    they lack one of the clips.
    """

    def __init__(self, directory: str, clips: Sequence[Clip], size: int, max_frames: int):
        self.size, self.longest = size, max_frames
        self.waits = is_bucket(directory)
        self._splits = {
            split: open_shards(directory, split, clips)
            for split in dict.fromkeys(clip.split for clip in clips)
        }
        self._positions: dict[str, tuple[str, int]] = {}
        for split, shards in self._splits.items():
            if (shards.size, shards.max_frames) != (size, max_frames):
                raise UsageError(
                    f"{directory} contains up to {shards.max_frames} frames of {shards.size} px, "
                    f"the run needs {max_frames} of {size} px: run `prepare` into another directory"
                )
            self._positions |= {clip_id: (split, i) for i, clip_id in enumerate(shards.clip_ids)}
        missing = [clip.clip_id for clip in clips if clip.clip_id not in self._positions]
        if missing:
            raise DataError(
                f"{directory} lacks {len(missing)} of {len(clips)} clips, such as {missing[0]}: "
                "run `prepare` into another directory"
            )

    def __getitem__(self, clip_id: str) -> Frames:
        split, i = self._positions[clip_id]
        return self._splits[split][i]["frames"]


def open_frames(
    clips: Sequence[Clip],
    size: int,
    max_frames: int,
    directory: str = "",
    *,
    workers: int = 0,
    choice: FrameChoice = uniform,
) -> FrameSource:
    """The frames of `clips` from the shards in `directory`, or from the files if it is empty.

    The files of a small data set are decoded here, once. Those of a large one are decoded at
    every access, and so are those of a small one if worker processes read them. `choice` is that
    of the frames of a file; those in shards were chosen by `prepare`.
    """
    if directory:
        return ShardFrames(directory, clips, size, max_frames)
    if not workers and len(clips) * max_frames * size * size * 3 <= MEMORY_LIMIT:
        return MemoryFrames(clips, size, max_frames, choice)
    return FileFrames(clips, size, max_frames, choice)


_num_processes = 1  # that read on this machine at the same time, including this one


def share_cores(num_processes: int) -> None:
    """Limits `num_threads` to this process's share of the cores of the machine."""
    global _num_processes
    _num_processes = num_processes


def num_threads(source: object = None) -> int:
    """How many threads this process may use for reading.

    They are more than its cores if the source `waits`: for the answers of a bucket.
    """
    waiting = BUCKET_THREADS if getattr(source, "waits", False) else 0
    return max(1, len(os.sched_getaffinity(0)) // _num_processes, waiting // _num_processes)
