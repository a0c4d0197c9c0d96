"""Decodes clips: the sampled frames of a video as square images.

A file is read twice, with at most one decoded frame in memory: first the packets without
decoding, since the frame counts in headers are often wrong or absent; then the frames that are
wanted, each from the access point before it, or all of them up to the last one that is wanted.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

from data.video import seeking
from data.video.file_faults import describe, unreadable
from data.video.frame_choice import FrameChoice, uniform
from data.video.local import local_video
from data.video.render import read_orientation, render_frame
from data.video.timeline import Timeline, frames_of_clip, read_timeline, require_within

# Only these decoders read the second image in which a WebM file keeps its alpha channel.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

KEPT_TIMELINES = 64  # a long file's takes a megabyte

Render = Callable[[av.VideoFrame, tuple[bool, int, int]], np.ndarray]  # a frame and its orientation


def read_frames(
    path: str,
    size: int,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    choice: FrameChoice = uniform,
) -> np.ndarray:
    """The frames of `frames_of_clip` as uint8 RGB [n, size, size, 3], n <= max_frames.

    A frame that does not decode is replaced by the last good frame before it, or by the first good
    frame if there is none before. Frames are rotated as the file specifies, transparency is blended
    over black, and pixels are taken to be square.

    Raises DataError if nothing decodes, or if the clip is beyond the end of the video.
    """
    render = functools.partial(render_frame, size=size)
    return np.stack(read_images(path, render, max_frames, start=start, end=end, choice=choice))


def read_images(
    path: str,
    render: Render,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    choice: FrameChoice = uniform,
) -> list[np.ndarray]:
    """As `read_frames`, but each frame as `render` makes it, which is one of `video/render`."""
    try:
        with local_video(path) as local:
            return _read_local(local, render, max_frames, start, end, choice=choice)
    except (FileNotFoundError, PermissionError) as error:
        raise unreadable(path, describe(error)) from None


def _read_local(
    path: str,
    render: Render,
    max_frames: int,
    start: float | None,
    end: float | None,
    *,
    choice: FrameChoice,
) -> list[np.ndarray]:
    timeline = timeline_of(path)
    require_within(path, timeline, start, end)
    numbers = frames_of_clip(timeline, max_frames, start, end, choice=choice)
    frames = _pick_by_seeking(path, render, timeline, numbers)
    if frames is None and timeline.pts_match and timeline.pts is not None:
        frames = _pick_frames(path, render, timeline.pts[numbers].tolist(), by_pts=True)
    if frames is None:
        frames = _pick_frames(path, render, numbers, by_pts=False)
    if not frames:
        raise unreadable(path, "no frame decodes")
    return frames


def timeline_of(path: str) -> Timeline:
    """The timeline of a file; those of the last files are kept, for their other clips."""
    try:
        status = os.stat(path)
    except OSError:
        status = None  # opening it says why
    if status is None or not status.st_size:
        with open_video(path) as (container, stream):
            return read_timeline(path, container, stream)
    return _timeline_of_version(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=KEPT_TIMELINES)
def _timeline_of_version(path: str, size: int, mtime_ns: int) -> Timeline:
    del size, mtime_ns  # a file that has changed is read again
    with open_video(path) as (container, stream):
        return read_timeline(path, container, stream)


def probe(path: str) -> None:
    """Decodes the first frame; raises DataError if none decodes."""
    with open_video(path) as (container, stream):
        if (first := next(_decode_frames(container, stream), None)) is None:
            raise unreadable(path, "no frame decodes")
        render_frame(first, read_orientation(first), 1)


def require_stretch(path: str, start: float | None, end: float | None) -> None:
    """Raises DataError if a stretch is beyond the end of a video, or before its first frame."""
    if start is not None or end is not None:
        require_within(path, timeline_of(path), start, end)


def _pick_by_seeking(
    path: str, render: Render, timeline: Timeline, numbers: list[int]
) -> list[np.ndarray] | None:
    """The frames with these numbers, rising; None if the file has to be decoded from its start."""
    frames: dict[int, np.ndarray] = {}
    try:
        runs = seeking.plan_runs(timeline, numbers)
        with open_video(path) as (container, stream):
            decoder, orientation = create_decoder(stream), None
            for run in runs:
                for number, frame in decode_run(container, stream, decoder, timeline, run):
                    orientation = orientation or read_orientation(frame)
                    frames[number] = render(frame, orientation)
    except seeking.NotTrusted:
        return None
    return [frames[number] for number in numbers]


def decode_run(
    container: Any, stream: Any, decoder: Any, timeline: Timeline, run: seeking.Run
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The numbers and the frames of a run. Raises NotTrusted if something does not decode."""
    assert timeline.packets is not None and timeline.pts is not None
    wanted = {int(timeline.pts[number]): number for number in run.numbers}
    packets = seeking.packets_of_run(container, stream, timeline.packets, run.first)
    while wanted:
        try:
            frames = decoder.decode(next(packets))
        except (av.FFmpegError, StopIteration):
            raise seeking.NotTrusted from None
        for frame in frames:
            if frame.is_corrupt:
                raise seeking.NotTrusted
            number = wanted.pop(frame.pts, None)
            if number is not None:
                yield number, frame


def _pick_frames(
    path: str, render: Render, wanted: list[int], by_pts: bool
) -> list[np.ndarray] | None:
    """The frames whose time stamps (`by_pts`) or numbers are `wanted`, in rising order.

    None if the decoder's time stamps do not rise, which makes them useless.
    """
    frames: list[np.ndarray] = []
    previous, previous_key, orientation = None, None, None
    with open_video(path) as (container, stream):
        for number, frame in enumerate(_decode_frames(container, stream)):
            orientation = orientation or read_orientation(frame)
            key = frame.pts if by_pts else number
            if key is None or (previous_key is not None and key <= previous_key):
                return None
            remaining = wanted[len(frames) :]
            if lost := sum(want < key for want in remaining):
                frames += [render(previous or frame, orientation)] * lost
            if due := remaining.count(key):
                frames += [render(frame, orientation)] * due
            if len(frames) == len(wanted):
                return frames
            previous, previous_key = frame, key
        if previous and orientation:
            frames += [render(previous, orientation)] * (len(wanted) - len(frames))
    return frames


def create_decoder(stream: Any) -> av.VideoCodecContext:
    """The decoder of a stream: one that reads the alpha channel if there is one."""
    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
    # Clips are decoded in parallel; threads within one decoder would only compete with them.
    decoder.thread_count = 1
    return decoder


def _decode_frames(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    """All frames that decode, in display order; damaged packets are skipped."""
    decoder, packets = create_decoder(stream), container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None  # the file ends here; what the decoder still holds is flushed below
        with contextlib.suppress(av.FFmpegError):
            yield from decoder.decode(packet)
        if packet is None or not packet.size:
            return


def _open_container(location: str, options: dict[str, str]) -> Any:
    # Titles that are not UTF-8 raise without `metadata_errors`, which PyAV 19 does not have.
    try:
        return av.open(location, metadata_errors="replace", options=options)
    except TypeError as error:
        if "metadata_errors" not in str(error):
            raise
        return av.open(location, options=options)


@contextlib.contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream (never cover art).

    Raises DataError if the file is not a readable video.
    """
    try:
        # An absolute path is never parsed as a URL such as "http:".
        location, options = os.path.abspath(path), {"protocol_whitelist": "file"}
        with _open_container(location, options) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise unreadable(path, "no video stream in it")
            best = container.streams.best("video")
            stream = best if best in streams else streams[0]
            if stream.codec_context is None:
                raise unreadable(path, "no decoder for its video")
            yield container, stream
    except av.FFmpegError as error:
        empty = os.path.isfile(path) and not os.path.getsize(path)
        raise unreadable(path, "empty file" if empty else error.strerror or str(error)) from None
