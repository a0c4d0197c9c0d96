"""One video file looked at from its first byte to its last: what training would take of it.

Training passes over what does not decode (`data/video.py: read_frames`): a lost frame is the
last good one, what a decoder has patched up is taken as it is, and a video that was cut off
is a shorter one. Here each of them shows (`data/strict.py`).
"""

import hashlib
import os
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.video import decode, strict_decode
from data.video.file_faults import fault_of_file, reason_of_content

SIDE = 32  # of the pictures that are compared
BLACK = 8  # of 255: nothing in a black frame is brighter
TOLERATED = 0.05  # share of a video's frames that may be lost where none of them is wanted
# Containers whose header tells how long a video is, and not a guess from its rate of bytes.
TIMED = ("matroska", "flv")


class FileJob(NamedTuple):
    path: str
    stretches: tuple[tuple[float | None, float | None], ...]  # start and end of each clip in it
    frames: int  # a clip's at most


class SegmentReport(NamedTuple):
    """One clip of a file."""

    fault: str  # why it is not to be trained on; empty: it is sound
    damage: str = ""  # what is wrong with the file, though all frames that are taken are whole
    seconds: float = 0.0
    frames: int = 0  # taken in training
    black: int = 0  # of these
    pictures: str = ""  # digest of these; empty: all are black


class FileReport(NamedTuple):
    stretches: tuple[SegmentReport, ...]
    missing: bool = False  # no file is there
    content: tuple[int, str] | None = None  # bytes of the file and their digest


def inspect_file(job: FileJob) -> FileReport:
    """What is wrong with each clip of a file; raises nothing but MemoryError."""
    fault, missing = fault_of_file(job.path)
    if fault:
        return FileReport((SegmentReport(fault),) * len(job.stretches), missing)
    try:
        stretches = _stretches(job)
    except DataError as error:
        fault = reason_of_content(job.path) or _reason(error, job.path)
        stretches = (SegmentReport(fault),) * len(job.stretches)
    with open(job.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileReport(stretches, False, (os.path.getsize(job.path), digest.hexdigest()))


def _reason(error: DataError, path: str) -> str:
    said = str(error).removeprefix(f"{path}: ").split("; ")[0]
    return said.replace("(End of file)", "(it ends before its first frame)")


class DecodeRequest(NamedTuple):
    """One clip, and how its pictures are wanted."""

    path: str
    start: float | None
    end: float | None
    frames: int
    size: int


def decode_checked(clip: DecodeRequest) -> np.ndarray | str:
    """The pictures of a clip as `read_frames` takes them, uint8 [n, size, size, 3], n <= frames,
    or why the clip is not to be trained on, as `examine` has it.

    A sound file is decoded once for both. Raises nothing but MemoryError.
    """
    if fault := fault_of_file(clip.path)[0]:
        return fault
    job = FileJob(clip.path, ((clip.start, clip.end),), clip.frames)
    try:
        timeline, promised, decoded, (wanted,) = _look(job, clip.size)
        if isinstance(wanted, str):
            return wanted
        if fault := _faults(timeline, promised, decoded, wanted)[0]:
            return fault
        found = [decoded.pictures[n] for n in wanted if n in decoded.pictures]
        plain = not decoded.damaged and decoded.by_stamp == timeline.decoded_alike
        if plain and len(found) == len(wanted):
            return np.stack(found)
        # Something was passed over; what training takes instead is for `read_frames` to say.
        return decode.read_frames(clip.path, clip.size, clip.frames, clip.start, clip.end)
    except DataError as error:
        return reason_of_content(clip.path) or _reason(error, clip.path)


def _stretches(job: FileJob) -> tuple[SegmentReport, ...]:
    timeline, promised, decoded, wanted = _look(job, SIDE)
    return tuple(
        SegmentReport(some)
        if isinstance(some, str)
        else _judge(timeline, promised, decoded, some, *ends)
        for some, ends in zip(wanted, job.stretches, strict=True)
    )


def _look(
    job: FileJob, size: int
) -> tuple[decode.Timeline, int, strict_decode.Decoded, list[list[int] | str]]:
    """The file's timeline, the frames its header promises, what decodes of it, and of each
    stretch the numbers of the frames to take, or a fault."""
    with decode.open_video(job.path) as (container, stream):
        timeline = decode.read_timeline(job.path, container, stream)
        promised = _promised_frames(container, stream, timeline)
    wanted: list[list[int] | str] = []
    for start, end in job.stretches:
        try:
            decode.require_within(job.path, timeline, start)
        except DataError as error:
            wanted.append(_reason(error, job.path))
            continue
        at = decode.frame_positions(timeline.frames, timeline.rate, job.frames, start, end)
        wanted.append(decode.frames_at(timeline, at))
    numbers = sorted({n for some in wanted if isinstance(some, list) for n in some})
    return timeline, promised, strict_decode.decode(job.path, timeline, numbers, size), wanted


def _promised_frames(container, stream, timeline) -> int:
    """How many frames the header tells of; 0 if it does not."""
    if stream.frames:
        # The index of the MP4 family is without the samples that its edit list leaves out.
        index = len(stream.index_entries) if container.format.name.startswith("mov") else 0
        return min(stream.frames, index or stream.frames)
    timed = container.duration and container.format.name.startswith(TIMED)
    if not timed or not timeline.steady:  # the last frame may be meant to last
        return 0
    told = _seconds(stream.metadata.get("DURATION", ""))
    if not told and len(container.streams) == 1:
        told = container.duration / 1e6
    return round(told * timeline.rate)


def _seconds(clock: str) -> float:
    """Seconds of "00:00:02.000000000"; 0 if it is something else."""
    try:
        hours, minutes, seconds = map(float, clock.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _judge(timeline, promised, decoded, numbers, start, end) -> SegmentReport:
    seconds = min(timeline.seconds, end or timeline.seconds) - (start or 0.0)
    pictures = [decoded.pictures[n] for n in numbers if n in decoded.pictures]
    black = sum(int(picture.max()) <= BLACK for picture in pictures)
    digest = ""
    if black < len(pictures):
        digest = hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()
    said = _faults(timeline, promised, decoded, numbers)
    return SegmentReport(*said, seconds, len(numbers), black, digest)


def _faults(timeline, promised, decoded, numbers) -> tuple[str, str]:
    """Why a clip of the frames `numbers` is bad, or what damage it can bear; "" for none."""
    whole, there = decoded.whole, decoded.there
    if promised <= there + 1:  # headers may or may not count the last frame's own time
        promised = 0
    lost = sum(not whole[n] for n in numbers)
    faults = []
    if lost:
        faults.append(f"{lost} of the {len(numbers)} frames to take are damaged")
    if promised:
        faults.append(f"cut short: {there} frames of the {promised} that its header promises")
    damaged = int((~whole).sum())
    if not lost and decoded.damaged:
        faults.append(f"{damaged} of its {timeline.frames} frames are damaged")
    said = "; ".join(faults)
    share = max(damaged / timeline.frames, (promised - there) / promised if promised else 0.0)
    return (said, "") if lost or share > TOLERATED else ("", said)
