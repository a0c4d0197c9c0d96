"""Decodes only what the wanted frames of a file need, from the access points before them.

A file delivers the same packets after a seek as without one, or it is not trusted: then it has to
be decoded from its start. So the pictures are those of a full decode.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from data.video.timeline import Packets, Timeline

LEAST_SKIP = 16  # packets; a seek that skips fewer is not worth it
EARLIER_SECONDS = 0, 2, 10  # how much earlier to seek if a file arrives after the packet


class Run(NamedTuple):
    """Frames that are decoded one after the other, from packet `first` on."""

    first: int
    numbers: list[int]  # of the frames to take, rising


class NotTrusted(Exception):
    """The file has to be decoded from its start."""


def plan_runs(timeline: Timeline, numbers: Sequence[int]) -> list[Run]:
    """The runs that give the frames `numbers`. Raises NotTrusted if the file has no such table."""
    packets = timeline.packets
    if packets is None or timeline.pts is None:
        raise NotTrusted
    access = np.flatnonzero(packets.access)
    runs: list[Run] = []
    last = 0  # the packet of the frame before
    for number in sorted(set(numbers)):
        packet = int(packets.of_frame[number])
        i = int(np.searchsorted(access, packet, side="right")) - 1
        # Frames that follow an access point but are shown before it may refer to earlier ones.
        while i >= 0 and packets.pts[access[i]] > timeline.pts[number]:
            i -= 1
        first = int(access[i]) if i >= 0 else 0
        if runs and first - last < LEAST_SKIP:
            runs[-1].numbers.append(number)
        else:
            runs.append(Run(first if first >= LEAST_SKIP else 0, [number]))
        last = packet
    return runs


def packets_of_run(
    container: Any, stream: Any, packets: Packets, first: int
) -> Iterator[av.Packet | None]:
    """The packets from `first` on, then None. Raises NotTrusted if the file delivers others."""
    expected = first
    for packet in _seek(container, stream, packets, first) if first else container.demux(stream):
        if not packet.size:
            continue
        if expected == len(packets.pts) or packet.pts != packets.pts[expected]:
            raise NotTrusted
        yield packet
        expected += 1
    if expected < len(packets.pts):
        raise NotTrusted
    yield None


def _seek(container: Any, stream: Any, packets: Packets, first: int) -> Iterator[av.Packet]:
    """The packets from `first` on, found by their time stamps."""
    later = set(packets.pts[first + 1 :].tolist())
    for earlier in EARLIER_SECONDS:
        try:
            target = int(packets.pts[first]) - round(earlier / stream.time_base)
            container.seek(target, stream=stream)
        except av.FFmpegError:
            continue
        for packet in container.demux(stream):
            if not packet.size or packet.pts in later:
                break  # too late: seek earlier
            if packet.pts == packets.pts[first]:
                yield packet
                yield from container.demux(stream)
                return
    raise NotTrusted
