"""Finds clips that cannot be read, before training starts."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data.annotations.common import first_few
from data.errors import DataError
from data.records import Broken, Clip
from data.video.decode import probe


def check_clips(clips: list[Clip], progress: bool = True) -> list[tuple[Clip, str]]:
    """The clips that are bad, in their order, each with the reason.

    Opens every file once per distinct start of its clips and decodes the first frame from
    there. `progress` shows a bar on stderr.
    """
    starts = list(dict.fromkeys((clip.path, clip.start) for clip in clips))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        faults = tqdm(
            pool.map(_find_fault, starts),
            total=len(starts),
            desc="checking videos",
            leave=False,
            disable=not progress,
        )
        fault_at = dict(zip(starts, faults, strict=True))
    return [
        (clip, fault) for clip in clips if (fault := fault_at[clip.path, clip.start]) is not None
    ]


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


def _find_fault(path_and_start: tuple[str, float | None]) -> str | None:
    path, start = path_and_start
    if not os.path.isfile(path):
        return "no such file"
    try:
        probe(path, start)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ").split("; ")[0]
    return None
