"""One video file decoded from its first byte to its last, with nothing patched up.

The decoder is told to give up where it would patch up, so that each damaged frame shows.
Frames that lean on a lost one, up to the next key frame, are spoilt too.
What no decoder can notice stays unseen: a few bits turned round in VP9, say.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import av
import numpy as np

from data.errors import DataError
from data.video.decode import Timeline, decoder_of, open_video, read_orientation, render_frame


@dataclasses.dataclass
class Decoded:
    pictures: dict[int, np.ndarray]  # of the wanted frames, by number: uint8 [size, size, 3]
    whole: np.ndarray  # [frames] bool: the frame decodes and leans on no damage
    damaged: bool  # something in the file is
    there: int  # frames in the file
    by_stamp: bool  # frames are known by their stamps, not by their numbers


def decode(path: str, timeline: Timeline, numbers: Sequence[int], size: int) -> Decoded:
    """Decodes a file to its end, and keeps the pictures of the frames `numbers`.

    Raises DataError if no frame decodes whole.
    """
    decoded = _decode(path, timeline, numbers, size, True) if timeline.decoded_alike else None
    return decoded or _decode(path, timeline, numbers, size, by_stamp=False)


def _decode(path: str, timeline, numbers, size: int, by_stamp: bool) -> Decoded | None:
    """None if the decoder's stamps do not rise: they say nothing."""
    stamps = timeline.stamps.tolist() if by_stamp else range(timeline.frames)
    number_of = {stamp: i for i, stamp in enumerate(stamps)}
    left, pictures, turn, before = set(numbers), {}, None, None
    shown = np.zeros(timeline.frames, bool)
    corrupt = np.zeros(timeline.frames, bool)
    notes, there = _Notes(), 0
    with open_video(path) as (container, stream):
        for count, frame in enumerate(_strictly(container, stream, notes)):
            turn = turn or read_orientation(frame)
            key = frame.pts if by_stamp else count
            if key is None or (before is not None and key <= before):
                return None
            before, number = key, number_of.get(key)
            if number is None:
                continue
            shown[number], corrupt[number] = True, frame.is_corrupt
            if number in left:
                pictures[number] = render_frame(frame, turn, size)
        there = _there(stream, timeline, len(notes.stamps))
    if not shown.any():
        raise DataError("no frame decodes whole")
    if notes.failed or corrupt.any():
        whole = shown & ~corrupt & ~notes.spoilt(number_of, by_stamp)
        return Decoded(pictures, whole, True, there, by_stamp)
    # A packet of a sound file may hold a picture that is never shown (VP8).
    return Decoded(pictures, np.ones_like(shown), False, there, by_stamp)


class _Notes:
    """The packets of a file as they come, and those that failed."""

    def __init__(self):
        self.stamps: list[int | None] = []
        self.groups: list[int] = []  # which key frame a packet follows
        self.failed: list[int] = []  # numbers of packets

    def add(self, packet: av.Packet) -> None:
        self.stamps.append(packet.pts)
        self.groups.append((self.groups[-1] if self.groups else 0) + packet.is_keyframe)
        if packet.is_corrupt:
            self.fail()

    def fail(self) -> None:
        self.failed.append(max(len(self.stamps) - 1, 0))

    def spoilt(self, number_of: dict[int, int], by_stamp: bool) -> np.ndarray:
        """[frames] bool: frames of failed packets and those after them, to the next key frame."""
        spoilt = np.zeros(len(number_of), bool)
        if not self.failed or not self.stamps:
            return spoilt
        if not by_stamp:  # nobody knows which frame is which from there on
            spoilt[min(self.failed) :] = True
            return spoilt
        first = {}
        for packet in reversed(self.failed):
            first[self.groups[packet]] = packet
        for packet, (stamp, group) in enumerate(zip(self.stamps, self.groups, strict=True)):
            if packet >= first.get(group, len(self.stamps)) and stamp in number_of:
                spoilt[number_of[stamp]] = True
        return spoilt


def _strictly(container, stream, notes: _Notes) -> Iterator[av.VideoFrame]:
    """All frames that decode without being patched up."""
    decoder = decoder_of(stream)
    decoder.options = {"err_detect": "explode"}
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None
            notes.fail()
        if packet is not None and packet.size:
            notes.add(packet)
        try:
            yield from decoder.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            notes.fail()
        if packet is None or not packet.size:
            return


def _there(stream, timeline, packets: int) -> int:
    """How many frames a file holds; one that is shown longer counts as several."""
    if timeline.stamps is None or not stream.average_rate:
        return max(packets, timeline.frames)
    seconds = float(timeline.stamps[-1] - (stream.start_time or 0)) * timeline.unit
    return max(packets, timeline.frames, round(seconds * float(stream.average_rate)) + 1)
