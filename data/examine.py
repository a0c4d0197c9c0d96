"""One video file looked at from its first byte to its last: what training would take of it.

Training passes over what does not decode (`data/video.py: read_frames`): a lost frame is the
last good one, what a decoder has patched up is taken as it is, and a video that was cut off
is a shorter one. Here the decoder is told to give up where it would patch up, so that each
of them shows. Frames that lean on a lost one, up to the next key frame, are spoilt too.
What no decoder can notice stays unseen: a few bits turned round in VP9, say.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np

from data import video
from data.files import fault_of_file, reason_of_content
from hvp_jax.errors import BadData

SIDE = 32  # of the pictures that are compared
BLACK = 8  # of 255: nothing in a black frame is brighter
TOLERATED = 0.05  # share of a video's frames that may be lost where none of them is wanted
# Containers whose header tells how long a video is, and not a guess from its rate of bytes.
TIMED = ("matroska", "flv")


class Job(NamedTuple):
    path: str
    stretches: tuple[tuple[float | None, float | None], ...]  # start and end of each clip in it
    frames: int  # a clip's at most


class Stretch(NamedTuple):
    """One clip of a file."""

    fault: str  # why it is not to be trained on; empty: it is sound
    damage: str = ""  # what is wrong with the file, though all frames that are taken are whole
    seconds: float = 0.0
    frames: int = 0  # taken in training
    black: int = 0  # of these
    pictures: str = ""  # digest of these; empty: all are black


class Examined(NamedTuple):
    stretches: tuple[Stretch, ...]
    missing: bool = False  # no file is there
    content: tuple[int, str] | None = None  # bytes of the file and their digest


def examine(job: Job) -> Examined:
    """What is wrong with each clip of a file; raises nothing but MemoryError."""
    fault, missing = fault_of_file(job.path)
    if fault:
        return Examined((Stretch(fault),) * len(job.stretches), missing)
    try:
        stretches = _stretches(job)
    except BadData as error:
        fault = reason_of_content(job.path) or _reason(error, job.path)
        stretches = (Stretch(fault),) * len(job.stretches)
    with open(job.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Examined(stretches, False, (os.path.getsize(job.path), digest.hexdigest()))


def _reason(error: BadData, path: str) -> str:
    said = str(error).removeprefix(f"{path}: ").split("; ")[0]
    return said.replace("(End of file)", "(it ends before its first frame)")


def _stretches(job: Job) -> tuple[Stretch, ...]:
    with video.opened(job.path) as (container, stream):
        timeline = video.read_timeline(job.path, container, stream)
        promised = _promised_frames(container, stream, timeline)
    wanted: list[list[int] | str] = []  # numbers of the frames, or a fault
    for start, end in job.stretches:
        try:
            video.require_within(job.path, timeline, start)
        except BadData as error:
            wanted.append(_reason(error, job.path))
            continue
        at = video.frame_positions(timeline.frames, timeline.rate, job.frames, start, end)
        wanted.append(video.shown(timeline, at))
    numbers = sorted({n for some in wanted if isinstance(some, list) for n in some})
    decoded = _decode(job.path, timeline, numbers, by_stamp=timeline.decoded_alike)
    if decoded is None:
        decoded = _decode(job.path, timeline, numbers, by_stamp=False)
    return tuple(
        Stretch(some) if isinstance(some, str) else _judge(timeline, promised, decoded, some, *ends)
        for some, ends in zip(wanted, job.stretches, strict=True)
    )


@dataclasses.dataclass
class _Decoded:
    pictures: dict[int, np.ndarray]  # of the wanted frames, by number: uint8 [SIDE, SIDE, 3]
    whole: np.ndarray  # [frames] bool: the frame decodes and leans on no damage
    damaged: bool  # something in the file is
    there: int  # frames in the file


def _decode(path: str, timeline, numbers: Sequence[int], by_stamp: bool) -> _Decoded | None:
    """Decodes the file to its end; None if the decoder's stamps do not rise: they say nothing."""
    stamps = timeline.stamps.tolist() if by_stamp else range(timeline.frames)
    number_of = {stamp: i for i, stamp in enumerate(stamps)}
    left, pictures, turn, before = set(numbers), {}, None, None
    shown = np.zeros(timeline.frames, bool)
    corrupt = np.zeros(timeline.frames, bool)
    notes, there = _Notes(), 0
    with video.opened(path) as (container, stream):
        for count, frame in enumerate(_strictly(container, stream, notes)):
            turn = turn or video.read_turn(frame)
            key = frame.pts if by_stamp else count
            if key is None or (before is not None and key <= before):
                return None
            before, number = key, number_of.get(key)
            if number is None:
                continue
            shown[number], corrupt[number] = True, frame.is_corrupt
            if number in left:
                pictures[number] = video.picture(frame, turn, SIDE)
        there = _there(stream, timeline, len(notes.stamps))
    if not shown.any():
        raise BadData("no frame decodes whole")
    if notes.failed or corrupt.any():
        whole = shown & ~corrupt & ~notes.spoilt(number_of, by_stamp)
        return _Decoded(pictures, whole, True, there)
    # A packet of a sound file may hold a picture that is never shown (VP8).
    return _Decoded(pictures, np.ones_like(shown), False, there)


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
    decoder = video.decoder_of(stream)
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


def _there(stream, timeline, packets: int) -> int:
    """How many frames a file holds; one that is shown longer counts as several."""
    if timeline.stamps is None or not stream.average_rate:
        return max(packets, timeline.frames)
    seconds = float(timeline.stamps[-1] - (stream.start_time or 0)) * timeline.unit
    return max(packets, timeline.frames, round(seconds * float(stream.average_rate)) + 1)


def _seconds(clock: str) -> float:
    """Seconds of "00:00:02.000000000"; 0 if it is something else."""
    try:
        hours, minutes, seconds = map(float, clock.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _judge(timeline, promised, decoded, numbers, start, end) -> Stretch:
    whole, there = decoded.whole, decoded.there
    if promised <= there + 1:  # headers may or may not count the last frame's own time
        promised = 0
    seconds = min(timeline.seconds, end or timeline.seconds) - (start or 0.0)
    lost = sum(not whole[n] for n in numbers)
    pictures = [decoded.pictures[n] for n in numbers if n in decoded.pictures]
    black = sum(int(picture.max()) <= BLACK for picture in pictures)
    digest = ""
    if black < len(pictures):
        digest = hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()
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
    bad = lost or share > TOLERATED
    facts = seconds, len(numbers), black, digest
    return Stretch(said, "", *facts) if bad else Stretch("", said, *facts)
