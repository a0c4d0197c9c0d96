"""One video file checked from its first byte to its last: what training would read from it.

Training tolerates what does not decode (`decode.py: read_frames`): a lost frame is replaced by
the last good one, frames that a decoder has repaired are used, and a truncated video is a
shorter one. Here all of these are reported (`strict_decode.py`).
"""

import hashlib
import os
from typing import Any, NamedTuple

import av
import numpy as np

from data.errors import DataError
from data.video import decode, strict_decode
from data.video.file_faults import describe, fault_of_file, reason_of_content
from data.video.local import local_video
from data.video.strict_decode import Decoded
from data.video.timeline import Timeline, frames_of_clip, require_within

SIZE = 32  # of the frames that are compared
BLACK = 8  # of 255: no pixel of a black frame is brighter
TOLERATED = 0.05  # share of a video's frames that may be lost if none of them is used
# Containers whose header states the duration, rather than a guess from the bit rate.
TIMED = ("matroska", "flv")


class FileJob(NamedTuple):
    path: str
    segments: tuple[tuple[float | None, float | None], ...]  # start and end of each of its clips
    max_frames: int  # per clip


class SegmentReport(NamedTuple):
    """One clip of a file."""

    fault: str  # why it must not be used for training; empty: it is good
    damage: str = ""  # damage to the file that spares all frames training uses
    seconds: float = 0.0
    frames: int = 0  # number that training uses
    black: int = 0  # number of these that are black
    digest: str = ""  # of these frames; empty: all are black
    gap: str = ""  # a stretch of time without a new frame, in a file that training reads


class FileReport(NamedTuple):
    segments: tuple[SegmentReport, ...]
    missing: bool = False  # there is no such file
    content: tuple[int, str] | None = None  # size of the file in bytes, and its digest


def inspect_file(job: FileJob) -> FileReport:
    """What is wrong with each clip of a file.

    Raises nothing but MemoryError, and DataError if its bucket cannot be reached.
    """
    try:
        with local_video(job.path) as local:
            return _inspect_local(job._replace(path=local))
    except (FileNotFoundError, PermissionError) as error:
        missing = isinstance(error, FileNotFoundError)
        return FileReport((SegmentReport(describe(error)),) * len(job.segments), missing)


def _inspect_local(job: FileJob) -> FileReport:
    fault, missing = fault_of_file(job.path)
    if fault:
        return FileReport((SegmentReport(fault),) * len(job.segments), missing)
    try:
        segments = _inspect_segments(job)
    except DataError as error:
        fault = reason_of_content(job.path) or _reason(error, job.path)
        segments = (SegmentReport(fault),) * len(job.segments)
    with open(job.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileReport(segments, False, (os.path.getsize(job.path), digest.hexdigest()))


def _reason(error: DataError, path: str) -> str:
    reason = str(error).removeprefix(f"{path}: ").split("; ")[0]
    return reason.replace("(End of file)", "(it ends before its first frame)")


class DecodeRequest(NamedTuple):
    """One clip, and the number and size of the frames wanted."""

    path: str
    start: float | None
    end: float | None
    max_frames: int
    size: int


def decode_checked(request: DecodeRequest) -> np.ndarray | str:
    """The frames of a clip as `read_frames` gives them, or why it must not be used for training.

    Frames are uint8 [n, size, size, 3], n <= max_frames; the reason is that of `inspect_file`.
    An undamaged file is decoded once for both. Raises nothing but MemoryError, and DataError
    if its bucket cannot be reached or refuses to read.
    """
    try:
        with local_video(request.path) as local:
            return _decode_local(request._replace(path=local))
    except FileNotFoundError as error:
        return describe(error)
    except PermissionError as error:  # a bucket's rights are rarely those of one object
        raise DataError(f"{request.path}: cannot be read: {error.strerror}") from None


def _decode_local(request: DecodeRequest) -> np.ndarray | str:
    if fault := fault_of_file(request.path)[0]:
        return fault
    job = FileJob(request.path, ((request.start, request.end),), request.max_frames)
    try:
        file = _decode_file(job, request.size)
        (numbers,) = file.numbers
        if isinstance(numbers, str):
            return numbers
        if fault := _faults(file, numbers, request.end)[0]:
            return fault
        decoded = file.decoded
        frames = [decoded.frames[n] for n in numbers if n in decoded.frames]
        undamaged = not decoded.damaged and decoded.by_pts == file.timeline.pts_match
        if undamaged and len(frames) == len(numbers):
            return np.stack(frames)
        # Some frames were skipped; `read_frames` decides what training uses instead.
        return decode.read_frames(
            request.path, request.size, request.max_frames, start=request.start, end=request.end
        )
    except DataError as error:
        return reason_of_content(request.path) or _reason(error, request.path)


class _DecodedFile(NamedTuple):
    timeline: Timeline
    promised: int  # frames according to the header; 0: it does not state them
    decoded: Decoded
    numbers: list[list[int] | str]  # for each segment, the numbers of its frames, or a fault


def _decode_file(job: FileJob, size: int) -> _DecodedFile:
    timeline = decode.timeline_of(job.path)
    with decode.open_video(job.path) as (container, stream):
        promised = _promised_frames(container, stream, timeline)
    numbers: list[list[int] | str] = []
    for start, end in job.segments:
        try:
            require_within(job.path, timeline, start, end)
        except DataError as error:
            numbers.append(_reason(error, job.path))
            continue
        numbers.append(frames_of_clip(timeline, job.max_frames, start, end))
    wanted = sorted({n for of_clip in numbers if isinstance(of_clip, list) for n in of_clip})
    # What is used is checked: of stretches, only what they need, if all of that is sound.
    whole = any(start is None or end is None for start, end in job.segments)
    decoded = None if whole else strict_decode.decode_parts(job.path, timeline, wanted, size)
    decoded = decoded or strict_decode.decode(job.path, timeline, wanted, size)
    return _DecodedFile(timeline, promised, decoded, numbers)


def _promised_frames(container: Any, stream: Any, timeline: Timeline) -> int:
    """How many frames the header says there are; 0 if it does not say."""
    if stream.frames:
        # The index of an MP4 file does not contain the samples that its edit list omits.
        index = len(stream.index_entries) if container.format.name.startswith("mov") else 0
        return min(stream.frames, index or stream.frames)
    timed = container.duration and container.format.name.startswith(TIMED)
    if not timed or not timeline.constant_rate:  # the last frame may be meant to be shown longer
        return 0
    duration = _parse_clock(stream.metadata.get("DURATION", ""))
    if not duration and len(container.streams) == 1:
        duration = container.duration / av.time_base
    # A duration in the header is the time at which the last frame ends.
    return round((duration - timeline.first_pts) * timeline.fps)


def _parse_clock(text: str) -> float:
    """Seconds of "00:00:02.000000000"; 0 if the text has another form."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _inspect_segments(job: FileJob) -> tuple[SegmentReport, ...]:
    file = _decode_file(job, SIZE)
    return tuple(
        SegmentReport(numbers)
        if isinstance(numbers, str)
        else _inspect_segment(file, numbers, start, end)
        for numbers, (start, end) in zip(file.numbers, job.segments, strict=True)
    )


def _inspect_segment(
    file: _DecodedFile, numbers: list[int], start: float | None, end: float | None
) -> SegmentReport:
    timeline = file.timeline
    decoded = file.decoded.frames
    frames = [decoded[n] for n in numbers if n in decoded]
    black = sum(int(frame.max()) <= BLACK for frame in frames)
    digest = ""
    if black < len(frames):
        digest = hashlib.sha256(np.stack(frames).tobytes()).hexdigest()
    fault, damage = _faults(file, numbers, end)
    first, last = max(start or 0.0, timeline.offset), min(timeline.end, end or timeline.end)
    return SegmentReport(
        fault=fault,
        damage=damage,
        seconds=last - first,
        frames=len(numbers),
        black=black,
        digest=digest,
        gap=_gap(timeline),
    )


def _gap(timeline: Timeline) -> str:
    if timeline.gap is None:
        return ""
    return (
        f"no new frame for {timeline.gap.seconds:.1f} s after {timeline.gap.start:.1f} s: a gap in "
        "its time stamps, or a still picture"
    )


def _faults(file: _DecodedFile, numbers: list[int], end: float | None) -> tuple[str, str]:
    """Why a clip of the frames `numbers` is bad, or which damage is tolerable; "" for none."""
    intact, present, promised = file.decoded.intact, file.decoded.num_frames, file.promised
    if promised <= present + 1:  # headers may or may not count the last frame's own time
        promised = 0
    lost = sum(not intact[n] for n in numbers)
    faults = []
    if lost:
        faults.append(f"{lost} of the {len(numbers)} frames to take are damaged")
    if promised:
        faults.append(f"cut short: {present} frames of the {promised} that its header promises")
    damaged = int((~intact).sum())
    if not lost and file.decoded.damaged:
        faults.append(f"{damaged} of its {file.timeline.num_frames} frames are damaged")
    text = "; ".join(faults)
    missing = (promised - present) / promised if promised else 0.0
    if end is not None and end <= file.timeline.end:
        missing = 0.0  # what the file lacks is behind the clip
    share = max(damaged / file.timeline.num_frames, missing)
    return (text, "") if lost or share > TOLERATED else ("", text)
