"""Where the pictures of a clip come from: its file, the memory, or shards."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from data.errors import DataError, UsageError
from data.records import Clip
from data.shards.reader import open_shards
from data.video.decode import read_frames


def decode(clip: Clip, size: int, frames: int) -> np.ndarray:
    """Pictures of a clip, uint8 [n, size, size, 3] RGB, 1 <= n <= frames.

    Raises DataError, naming the clip, where its file is missing, broken or has no picture.
    """
    try:
        return read_frames(clip.path, size, frames, start=clip.start, end=clip.end)
    except DataError as error:
        raise DataError(f"clip {clip.clip_id}: {error}") from error


# All pictures of a set are kept in memory if they cannot take more bytes than this.
MEMORY_LIMIT = 2 << 30


class FileFrames:
    """clip_id -> pictures uint8 [n, size, size, 3], n <= frames, decoded from the files.

    Raises DataError, naming the clip, where a file is missing or broken.
    """

    def __init__(self, clips: Sequence[Clip], size: int, frames: int):
        self.size, self.longest = size, frames
        self._clips = {clip.clip_id: clip for clip in clips}

    def __getitem__(self, clip_id: str) -> np.ndarray:
        return decode(self._clips[clip_id], self.size, self.longest)


class MemoryFrames:
    """clip_id -> the same pictures as FileSource, every clip decoded once and kept.

    For sets so small that all their pictures fit (`FITS` bytes). `longest` is the number
    of frames of the longest clip: no batch of theirs need be wider.
    """

    def __init__(self, clips: Sequence[Clip], size: int, frames: int):
        files = FileFrames(clips, size, frames)
        ids = [clip.clip_id for clip in clips]
        with ThreadPoolExecutor(threads()) as pool:
            read = tqdm(pool.map(files.__getitem__, ids), "decoding", len(ids), leave=False)
            self._pictures = dict(zip(ids, read, strict=True))
        self.size = size
        self.longest = max(map(len, self._pictures.values()), default=1)

    def __getitem__(self, clip_id: str) -> np.ndarray:
        return self._pictures[clip_id]


class ShardFrames:
    """clip_id -> the same pictures as FileSource, from what `prepare` wrote.

    Raises UsageError if the shards are of another size or number of frames, DataError if
    one of the clips is not in them.
    """

    def __init__(self, directory: str, clips: Sequence[Clip], size: int, frames: int):
        self.size, self.longest = size, frames
        self._splits = {
            split: open_shards(directory, split, clips)
            for split in dict.fromkeys(clip.split for clip in clips)
        }
        self._places: dict[str, tuple[str, int]] = {}
        for split, opened in self._splits.items():
            if (opened.size, opened.max_frames) != (size, frames):
                raise UsageError(
                    f"{directory} holds up to {opened.max_frames} frames of {opened.size} px, "
                    f"the run wants {frames} of {size} px: run `prepare` into another directory"
                )
            self._places |= {clip_id: (split, i) for i, clip_id in enumerate(opened.clip_ids)}
        missing = [clip.clip_id for clip in clips if clip.clip_id not in self._places]
        if missing:
            raise DataError(
                f"{directory} lacks {len(missing)} of {len(clips)} clips, such as {missing[0]}: "
                "run `prepare` into another directory"
            )

    def __getitem__(self, clip_id: str) -> np.ndarray:
        split, i = self._places[clip_id]
        return self._splits[split][i]["frames"]


FrameSource = FileFrames | MemoryFrames | ShardFrames


def open_frames(
    clips: Sequence[Clip], size: int, frames: int, directory: str = "", workers: int = 0
) -> FrameSource:
    """Pictures of `clips` from the shards in `directory`, or from the files if it is empty.

    Files of a small set are decoded here, once; those of a large one whenever they are
    asked for, as are those that worker processes read for themselves.
    """
    if directory:
        return ShardFrames(directory, clips, size, frames)
    fits = len(clips) * frames * size * size * 3 <= MEMORY_LIMIT
    return (MemoryFrames if fits and not workers else FileFrames)(clips, size, frames)


_processes = 1  # that read side by side on the cores of this machine, this one included


def share_cores(processes: int) -> None:
    """Tells a process that it is one of so many that read side by side."""
    global _processes
    _processes = processes


def threads() -> int:
    """How many threads this process has for reading."""
    return max(1, len(os.sched_getaffinity(0)) // _processes)
