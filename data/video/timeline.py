"""When the frames of a video are shown, and which of them a clip uses."""

import contextlib
import dataclasses
from typing import Any

import av
import numpy as np

from data.errors import DataError
from data.video.file_faults import unreadable


def frame_positions(
    num_frames: int,
    fps: float,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """The positions to sample from a video of `num_frames` frames: one per second.

    If that gives more than `max_frames`, it is reduced to `max_frames`, evenly spaced. `start`
    and `end` are in seconds, `end` included. Both are clamped to the video, so that there
    is always at least one position.
    """
    last = num_frames - 1
    first = 0 if start is None else min(max(int(start * fps), 0), last)
    if end is not None:
        last = max(min(int(end * fps), last), first)
    positions = range(first, last + 1, max(round(fps), 1))
    if len(positions) <= max_frames:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the frames of a video are shown, according to its packets."""

    num_frames: int
    fps: float  # the mean
    constant_rate: bool  # every frame is shown for 1 / fps seconds
    duration: float  # seconds from the first frame to the end of the last
    pts: np.ndarray | None = None  # [num_frames] int64, rising; None: the file has no usable ones
    time_base: float  # seconds per unit of `pts`
    pts_match: bool = False  # decoded frames carry the same time stamps


def read_timeline(path: str, container: Any, stream: Any) -> Timeline:
    """Reads all packets without decoding them. Raises DataError if there are none."""
    stamps = []
    # A file that is truncated or damaged at some point ends there.
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                stamps.append(packet.pts)
    if not (num_frames := len(stamps)):
        raise unreadable(path, "its video stream is empty")
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    time_base = float(stream.time_base)
    if num_frames == 1 or None in stamps or len(set(stamps)) < num_frames:
        return Timeline(
            num_frames=num_frames,
            fps=fps,
            constant_rate=True,
            duration=num_frames / fps,
            time_base=time_base,
        )
    # Stamps that rise although the decoder reorders (AVI) belong to packets, not to frames.
    pts_match = not (stream.codec_context.has_b_frames and stamps == sorted(stamps))
    pts = np.sort(np.array(stamps, np.int64))
    seconds = (pts - pts[0]) * time_base
    measured = (num_frames - 1) / float(seconds[-1])
    constant = [
        rate
        for rate in (fps, measured)
        if np.abs(seconds * rate - np.arange(num_frames)).max() < 0.5
    ]
    fps = constant[0] if constant else measured
    return Timeline(
        num_frames=num_frames,
        fps=fps,
        constant_rate=bool(constant),
        duration=num_frames / fps,
        pts=pts,
        time_base=time_base,
        pts_match=pts_match,
    )


def require_within(path: str, timeline: Timeline, start: float | None) -> None:
    """Raises DataError if `start` is beyond the end of the video."""
    if start is not None and start >= timeline.duration:
        raise DataError(
            f"{path}: start {start:g} s is beyond the end of the video"
            f" ({timeline.duration:.2f} s); correct its start and end"
        )


def frames_at(timeline: Timeline, positions: list[int]) -> list[int]:
    """The number of the frame that is shown at the time position / fps, for each position."""
    if timeline.constant_rate or timeline.pts is None:
        return positions
    at = np.array(positions) / timeline.fps / timeline.time_base + timeline.pts[0]
    return (np.searchsorted(timeline.pts, at + 1e-3, side="right") - 1).tolist()
