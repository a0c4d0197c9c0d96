"""When the frames of a video are shown, and which of them a clip uses.

Times are those of a player: 0 is where the file's first stream starts, be it picture or sound.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import av
import numpy as np

from data.errors import DataError
from data.video.access_points import is_access_point
from data.video.file_faults import unreadable
from data.video.frame_choice import FrameChoice, uniform

# A picture that starts less than this after the sound counts as starting with it: encoders of
# sound add a few hundredths of a second.
LEAST_OFFSET = 0.1
# A frame that is shown for longer than this, and than so many times the median, makes a gap.
GAP_SECONDS, GAP_RATIO = 10, 100


def frame_positions(
    num_frames: int,
    fps: float,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    choice: FrameChoice = uniform,
) -> list[int]:
    """The positions to sample from a video of `num_frames` frames, as `choice` does.

    `start` and `end` are in seconds from the first frame, `end` included. Both are clamped to the
    video, so that there is always at least one position.
    """
    last = num_frames - 1
    first = 0 if start is None else min(max(int(start * fps), 0), last)
    if end is not None:
        last = max(min(int(end * fps), last), first)
    return choice(first, last, max(round(fps), 1), max_frames)


class Packets(NamedTuple):
    """The packets of a video in the order they are decoded."""

    pts: np.ndarray  # [packets] int64, all different
    access: np.ndarray  # [packets] bool: decoding may start here
    of_frame: np.ndarray  # [num_frames] the packet of each frame


class Gap(NamedTuple):
    """A stretch of time in which no new frame is shown."""

    start: float  # seconds on the player's clock
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the frames of a video are shown, according to its packets.

    Frames are sampled by `shown`: it equals `pts`, but a gap takes no more time in it than any
    other frame, so that samples are spread over what there is to see.
    """

    num_frames: int
    fps: float  # the mean, without gaps
    constant_rate: bool  # every frame is shown for 1 / fps seconds, aside from gaps
    offset: float = 0.0  # seconds from 0 to the first frame
    end: float  # seconds from 0 to the end of the last frame
    pts: np.ndarray | None = None  # [num_frames] int64, rising; None: the file has no usable ones
    shown: np.ndarray | None = None  # [num_frames] int64
    time_base: float  # seconds per unit of `pts`
    pts_match: bool = False  # decoded frames carry the same time stamps
    gap: Gap | None = None  # the longest
    packets: Packets | None = None  # None: decoding has to start at the first packet

    @property
    def first_pts(self) -> float:
        """Seconds in the file's own time stamps."""
        return 0.0 if self.pts is None else float(self.pts[0]) * self.time_base

    def since_first_frame(self, seconds: float | None) -> float | None:
        """A time on the player's clock -> seconds after the first frame, without gaps."""
        if seconds is None:
            return None
        seconds -= self.offset
        if self.gap is None or self.pts is None or self.shown is None:
            return seconds
        real = (self.pts - self.pts[0]) * self.time_base
        shown = (self.shown - self.shown[0]) * self.time_base
        beyond = max(seconds - float(real[-1]), 0.0)
        return float(np.interp(seconds, real, shown)) + beyond


def read_timeline(path: str, container: Any, stream: Any) -> Timeline:
    """Reads all packets without decoding them. Raises DataError if there are none."""
    table = _read_packets(container, stream)
    stamps: list[Any] = [
        pts for pts, discarded in zip(table.pts, table.discarded, strict=True) if not discarded
    ]
    if not (num_frames := len(stamps)):
        raise unreadable(path, "its video stream is empty")
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    time_base = float(stream.time_base)
    if num_frames == 1 or None in stamps or len(set(stamps)) < num_frames:
        offset = _offset(container, stream, stream.start_time)
        shown_for = max(num_frames / fps, table.last_duration * time_base)
        return Timeline(
            num_frames=num_frames,
            fps=fps,
            constant_rate=True,
            offset=offset,
            end=offset + (shown_for if num_frames == 1 else num_frames / fps),
            time_base=time_base,
        )
    # Stamps that rise although the decoder reorders (AVI) belong to packets, not to frames.
    pts_match = not (stream.codec_context.has_b_frames and stamps == sorted(stamps))
    pts = np.sort(np.array(stamps, np.int64))
    # A header may say 0 although the picture is late.
    offset = _offset(container, stream, int(pts[0]) if pts_match else stream.start_time)
    shown, gap = _close_gaps(pts, time_base, offset)
    seconds = (shown - shown[0]) * time_base
    measured = (num_frames - 1) / float(seconds[-1])
    constant = [
        rate
        for rate in (fps, measured)
        if np.abs(seconds * rate - np.arange(num_frames)).max() < 0.5
    ]
    fps = constant[0] if constant else measured
    last = max(1 / fps, table.last_duration * time_base)
    length = float(pts[-1] - pts[0]) * time_base + last
    return Timeline(
        num_frames=num_frames,
        fps=fps,
        constant_rate=bool(constant),
        offset=offset,
        end=offset + (length if gap or last > 2 / fps else num_frames / fps),
        pts=pts,
        shown=shown,
        time_base=time_base,
        pts_match=pts_match,
        gap=gap,
        packets=_access_table(table) if pts_match else None,
    )


class _PacketTable(NamedTuple):
    pts: list[int | None]
    access: list[bool]
    discarded: list[bool]  # decoded for others to refer to, and not shown
    last_duration: int  # of the packet that is shown last


def _read_packets(container: Any, stream: Any) -> _PacketTable:
    table = _PacketTable([], [], [], 0)
    last_pts, last_duration = None, 0
    # A file that is truncated or damaged at some point ends there.
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            table.pts.append(packet.pts)
            table.access.append(bool(packet.is_keyframe) and is_access_point(stream, packet))
            table.discarded.append(bool(packet.is_discard))
            if packet.pts is not None and (last_pts is None or packet.pts > last_pts):
                last_pts, last_duration = packet.pts, packet.duration or 0
    if stream.duration and stream.start_time is not None and last_pts is not None:
        # The header may correct a wild duration of the last packet.
        last_duration = min(last_duration, stream.start_time + stream.duration - last_pts)
    return table._replace(last_duration=max(last_duration, 0))


def _offset(container: Any, stream: Any, first: int | None) -> float:
    """Seconds from the start of the file's first stream to the first frame, at `first`."""
    if first is None or container.start_time is None:
        return 0.0
    offset = float(first * stream.time_base) - container.start_time / av.time_base
    return offset if offset >= LEAST_OFFSET else 0.0


def _close_gaps(pts: np.ndarray, time_base: float, offset: float) -> tuple[np.ndarray, Gap | None]:
    """Time stamps in which a gap is as long as the median frame, and the longest gap."""
    intervals = np.diff(pts)
    median = int(np.median(intervals))
    is_gap = intervals * time_base > max(GAP_SECONDS, GAP_RATIO * median * time_base)
    if not is_gap.any():
        return pts, None
    shown = np.concatenate([pts[:1], pts[0] + np.cumsum(np.where(is_gap, median, intervals))])
    longest = int(np.argmax(intervals))
    start = offset + float(pts[longest] - pts[0]) * time_base
    return shown, Gap(start, float(intervals[longest]) * time_base)


def _access_table(table: _PacketTable) -> Packets | None:
    if None in table.pts or len(set(table.pts)) < len(table.pts):
        return None
    pts = np.array(table.pts, np.int64)
    kept = np.flatnonzero(~np.array(table.discarded))
    of_frame = kept[np.argsort(pts[kept])]
    return Packets(pts, np.array(table.access), of_frame)


def require_within(
    path: str, timeline: Timeline, start: float | None, end: float | None = None
) -> None:
    """Raises DataError if a clip is beyond the end of the video, or before its first frame."""
    if start is not None and start >= timeline.end:
        raise DataError(
            f"{path}: start {start:g} s is beyond the end of the video"
            f" ({timeline.end:.2f} s); correct its start and end"
        )
    if end is not None and 0 < end < timeline.offset:
        raise DataError(
            f"{path}: end {end:g} s is before the first picture of the video, which starts at"
            f" {timeline.offset:.2f} s; correct its start and end"
        )


def frames_of_clip(
    timeline: Timeline,
    max_frames: int,
    start: float | None = None,
    end: float | None = None,
    *,
    choice: FrameChoice = uniform,
) -> list[int]:
    """The numbers of the frames to take, at most `max_frames`, as `choice` does.

    `start` and `end` are times on the player's clock. With a variable frame rate, a position
    means the frame that is shown at the time position / mean rate.
    """
    positions = frame_positions(
        timeline.num_frames,
        timeline.fps,
        max_frames,
        start=timeline.since_first_frame(start),
        end=timeline.since_first_frame(end),
        choice=choice,
    )
    if timeline.constant_rate or timeline.shown is None:
        return positions
    shown = timeline.shown
    at = np.array(positions) / timeline.fps / timeline.time_base + shown[0]
    return (np.searchsorted(shown, at + 1e-3, side="right") - 1).tolist()
