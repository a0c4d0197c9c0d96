"""Finds clips that cannot be read, before training starts."""

import functools
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data.annotations.common import first_few
from data.errors import DataError
from data.records import Broken, Clip
from data.storage import listing
from data.storage.path import is_bucket
from data.video.decode import probe, require_stretch
from data.video.file_faults import describe
from data.video.local import local_video


def check_clips(clips: list[Clip], progress: bool = True) -> list[tuple[Clip, str]]:
    """The clips that are bad, in their order, each with the reason.

    Opens every file once, decodes its first frame, and looks where its clips start and end.
    `progress` shows a bar on stderr.
    """
    ends: dict[str, dict[tuple[float | None, float | None], None]] = {}
    for clip in clips:
        ends.setdefault(clip.path, {})[clip.start, clip.end] = None
    waiting = listing.THREADS if any(map(is_bucket, ends)) else 0
    with ThreadPoolExecutor(max(os.cpu_count() or 1, waiting)) as pool:
        faults = tqdm(
            pool.map(_find_faults, ends, ends.values()),
            total=len(ends),
            desc="checking videos",
            leave=False,
            disable=not progress,
        )
        fault_at = {
            (path, *end): fault
            for path, of_file in zip(ends, faults, strict=True)
            for end, fault in zip(ends[path], of_file, strict=True)
        }
    with_fault = ((clip, fault_at[clip.path, clip.start, clip.end]) for clip in clips)
    return [(clip, fault) for clip, fault in with_fault if fault is not None]


def require_sound(clips: list[Clip]) -> None:
    """Raises DataError if a clip is missing or cannot be read."""
    bad = check_clips(clips)
    if bad:
        raise refusal([Broken(clip.clip_id, clip.path, reason) for clip, reason in bad], len(clips))


def refusal(broken: Sequence[Broken], num_clips: int) -> DataError:
    """The error to raise for broken clips, in one line."""
    first = first_few([f"{clip_id} ({path}: {reason})" for clip_id, path, reason in broken])
    return DataError(
        f"{len(broken)} of {num_clips} clips are missing or broken: {first}; replace these files,"
        " or exclude them with data.exclude (`doctor` writes a list of them)"
    )


def _find_faults(
    path: str, ends: Collection[tuple[float | None, float | None]]
) -> list[str | None]:
    """Why each stretch of a file cannot be read; None if it can be."""
    try:
        with local_video(path) as local:
            if not os.path.isfile(local):
                return ["no such file"] * len(ends)
            if fault := _fault(local, functools.partial(probe, local)):
                return [fault] * len(ends)
            return [_fault(local, functools.partial(require_stretch, local, *end)) for end in ends]
    except (FileNotFoundError, PermissionError) as error:
        return [describe(error)] * len(ends)


def _fault(path: str, check: Callable[[], None]) -> str | None:
    try:
        check()
    except DataError as error:
        return str(error).removeprefix(f"{path}: ").split("; ")[0]
    return None
