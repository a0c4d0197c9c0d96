"""One video file decoded from its first byte to its last, without error concealment.

The decoder is told to fail where it would otherwise conceal an error, so that every damaged
frame is noticed. Frames that depend on a lost one, up to the next key frame, are damaged too.
What no decoder can detect goes unnoticed: a few flipped bits in VP9, for example.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from data.errors import DataError
from data.video.decode import create_decoder, decode_run, open_video
from data.video.render import read_orientation, render_frame
from data.video.seeking import NotTrusted, plan_runs
from data.video.timeline import Timeline

STRICT = {"err_detect": "explode"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    frames: dict[int, np.ndarray]  # the wanted frames by number: uint8 [size, size, 3]
    intact: np.ndarray  # [num_frames] bool: the frame decodes and depends on no damaged one
    damaged: bool  # whether anything in the file is damaged
    num_frames: int  # frames present in the file
    by_pts: bool  # frames were identified by their time stamps, not by counting


def decode(path: str, timeline: Timeline, numbers: Sequence[int], size: int) -> Decoded:
    """Decodes a file to its end, and keeps the frames with the given `numbers`.

    Raises DataError if no frame decodes without damage.
    """
    if timeline.pts_match and timeline.pts is not None:
        decoded = _decode(path, timeline, numbers, size, pts=timeline.pts.tolist())
        if decoded is not None:
            return decoded
    decoded = _decode(path, timeline, numbers, size)
    assert decoded is not None  # frames that are counted always rise
    return decoded


def decode_parts(
    path: str, timeline: Timeline, numbers: Sequence[int], size: int
) -> Decoded | None:
    """Decodes only what the frames with these `numbers` need; None unless all of it is sound."""
    frames: dict[int, np.ndarray] = {}
    try:
        runs = plan_runs(timeline, numbers)
        with open_video(path) as (container, stream):
            decoder, orientation = create_decoder(stream), None
            decoder.options = STRICT
            for run in runs:
                for number, frame in decode_run(container, stream, decoder, timeline, run):
                    orientation = orientation or read_orientation(frame)
                    frames[number] = render_frame(frame, orientation, size)
    except NotTrusted:
        return None
    return Decoded(
        frames=frames,
        intact=np.ones(timeline.num_frames, bool),
        damaged=False,
        num_frames=_count_frames(stream, timeline, timeline.num_frames),
        by_pts=True,
    )


def _decode(
    path: str,
    timeline: Timeline,
    numbers: Sequence[int],
    size: int,
    *,
    pts: list[int] | None = None,
) -> Decoded | None:
    """Identifies frames by their time stamps `pts`, or by counting them if that is None.

    None if the decoder's time stamps do not rise, which makes them useless.
    """
    number_of = {key: i for i, key in enumerate(pts or range(timeline.num_frames))}
    wanted, frames = set(numbers), {}
    orientation, previous = None, None
    decodes = np.zeros(timeline.num_frames, bool)
    corrupt = np.zeros(timeline.num_frames, bool)
    log = _PacketLog()
    with open_video(path) as (container, stream):
        for count, frame in enumerate(_decode_strictly(container, stream, log)):
            orientation = orientation or read_orientation(frame)
            key = count if pts is None else frame.pts
            if key is None or (previous is not None and key <= previous):
                return None
            previous, number = key, number_of.get(key)
            if number is None:
                continue
            decodes[number], corrupt[number] = True, frame.is_corrupt
            if number in wanted:
                frames[number] = render_frame(frame, orientation, size)
        num_frames = _count_frames(stream, timeline, len(log.pts))
    if not decodes.any():
        raise DataError("no frame decodes without damage")
    damaged = bool(log.failed or corrupt.any())
    # A packet of an undamaged file may hold a frame that is never shown (VP8).
    intact = np.ones_like(decodes)
    if damaged:
        intact = decodes & ~corrupt & ~log.affected_frames(number_of, pts is not None)
    return Decoded(
        frames=frames,
        intact=intact,
        damaged=damaged,
        num_frames=num_frames,
        by_pts=pts is not None,
    )


class _PacketLog:
    """The packets of a file in the order they are read, and which of them failed."""

    def __init__(self) -> None:
        self.pts: list[int | None] = []
        self.groups: list[int] = []  # number of the key frame that a packet belongs to or follows
        self.failed: list[int] = []  # numbers of packets

    def add(self, packet: av.Packet) -> None:
        self.pts.append(packet.pts)
        self.groups.append((self.groups[-1] if self.groups else 0) + packet.is_keyframe)
        if packet.is_corrupt:
            self.fail()

    def fail(self) -> None:
        self.failed.append(max(len(self.pts) - 1, 0))

    def affected_frames(self, number_of: dict[int, int], by_pts: bool) -> np.ndarray:
        """[frames] bool: frames of failed packets and those after them, to the next key frame."""
        affected = np.zeros(len(number_of), bool)
        if not self.failed or not self.pts:
            return affected
        if not by_pts:  # counting no longer identifies the frames after a lost one
            affected[min(self.failed) :] = True
            return affected
        first_failed = {}
        for packet in reversed(self.failed):
            first_failed[self.groups[packet]] = packet
        for packet, (pts, group) in enumerate(zip(self.pts, self.groups, strict=True)):
            if packet >= first_failed.get(group, len(self.pts)) and pts in number_of:
                affected[number_of[pts]] = True
        return affected


def _decode_strictly(container: Any, stream: Any, log: _PacketLog) -> Iterator[av.VideoFrame]:
    """All frames that decode without error concealment."""
    decoder = create_decoder(stream)
    decoder.options = STRICT
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None
            log.fail()
        if packet is not None and packet.size:
            log.add(packet)
        try:
            yield from decoder.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            log.fail()
        if packet is None or not packet.size:
            return


def _count_frames(stream: Any, timeline: Timeline, packets: int) -> int:
    """How many frames a file holds; one that is shown for longer counts as several."""
    if timeline.pts is None or not stream.average_rate:
        return max(packets, timeline.num_frames)
    seconds = float(timeline.pts[-1] - (stream.start_time or 0)) * timeline.time_base
    return max(packets, timeline.num_frames, round(seconds * float(stream.average_rate)) + 1)
