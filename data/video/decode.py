"""Decodes clips: which frames of a video are taken, and how each becomes a square picture.

A file is read twice, and neither reading holds more than one decoded frame: first its
packets alone, since counts in headers are often wrong or absent, then its pictures,
up to the last one that is wanted.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

from data.errors import DataError

# Only these decoders know the second picture in which a WebM file keeps its alpha.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def frame_positions(
    frames: int,
    rate: float,
    max_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """The frames to take of a video of `frames` at `rate` a second: one a second.

    Where that gives more than `max_frames`, as many of them, evenly spread. `start`
    and `end` are seconds, the end included; both are moved into the video, so that
    one frame at least is taken.
    """
    last = frames - 1
    first = 0 if start is None else min(max(int(start * rate), 0), last)
    if end is not None:
        last = max(min(int(end * rate), last), first)
    positions = range(first, last + 1, max(round(rate), 1))
    if len(positions) <= max_frames:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]


def resize_and_crop(frame: np.ndarray, size: int) -> np.ndarray:
    """A uint8 picture [H, W, 3] as uint8 [size, size, 3]: the short side resized, bicubic, and
    the centre cut out, both rounded as torchvision's Resize and CenterCrop do."""
    height, width = frame.shape[:2]
    short = min(height, width)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def read_frames(
    path: str,
    size: int,
    max_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """The frames of `frame_positions` as uint8 RGB [n, size, size, 3], n <= max_frames.

    At a varying frame rate a position stands for the frame shown at the moment
    position / mean rate. Frames that do not decode are replaced by the last good one
    before them, and before the first good one by that. Pictures are turned upright as
    the file asks; transparency is laid over black; pixels count as square.

    Raises DataError if nothing decodes, or if `start` lies behind the end of the video.
    """
    with open_video(path) as (container, stream):
        timeline = read_timeline(path, container, stream)
    require_within(path, timeline, start)
    positions = frame_positions(timeline.frames, timeline.rate, max_frames, start, end)
    wanted = frames_at(timeline, positions)
    stamps = timeline.stamps[wanted].tolist() if timeline.decoded_alike else None
    pictures = _take(path, size, stamps, by_stamp=True) if stamps else None
    if pictures is None:
        pictures = _take(path, size, wanted, by_stamp=False)
    if not pictures:
        raise _unreadable(path, "no frame decodes")
    return np.stack(pictures)


def probe(path: str, start: float | None = None) -> None:
    """Decodes the first frame; raises DataError if none decodes or `start` lies behind the end."""
    with open_video(path) as (container, stream):
        if (first := next(_decoded(container, stream), None)) is None:
            raise _unreadable(path, "no frame decodes")
        render_frame(first, read_orientation(first), 1)
    if start is not None:
        with open_video(path) as (container, stream):
            require_within(path, read_timeline(path, container, stream), start)


@dataclasses.dataclass(frozen=True)
class Timeline:
    frames: int
    rate: float  # frames a second
    steady: bool  # every frame lasts 1 / rate
    seconds: float  # from the first frame to the end of the last
    stamps: np.ndarray | None  # [frames] int64, rising, in `unit` seconds; None: file has none
    unit: float
    decoded_alike: bool  # decoded frames bear the same stamps


def read_timeline(path: str, container, stream) -> Timeline:
    stamps = []
    # A file cut off or damaged somewhere ends there.
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                stamps.append(packet.pts)
    if not (frames := len(stamps)):
        raise _unreadable(path, "its video stream is empty")
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    unit = float(stream.time_base)
    if frames == 1 or None in stamps or len(set(stamps)) < frames:
        return Timeline(frames, rate, True, frames / rate, None, unit, False)
    # Stamps that rise although the decoder reorders (AVI) belong to packets, not to pictures.
    alike = not (stream.codec_context.has_b_frames and stamps == sorted(stamps))
    stamps = np.sort(np.array(stamps, np.int64))
    seconds = (stamps - stamps[0]) * unit
    measured = (frames - 1) / float(seconds[-1])
    for steady_rate in (rate, measured):
        if np.abs(seconds * steady_rate - np.arange(frames)).max() < 0.5:
            return Timeline(frames, steady_rate, True, frames / steady_rate, stamps, unit, alike)
    return Timeline(frames, measured, False, frames / measured, stamps, unit, alike)


def require_within(path: str, timeline: Timeline, start: float | None) -> None:
    if start is not None and start >= timeline.seconds:
        raise DataError(
            f"{path}: start {start:g} s lies beyond the end of the video"
            f" ({timeline.seconds:.2f} s); correct its start and end"
        )


def frames_at(timeline: Timeline, positions: list[int]) -> list[int]:
    """The number of the frame on show at each position / rate."""
    if timeline.steady:
        return positions
    at = np.array(positions) / timeline.rate / timeline.unit + timeline.stamps[0]
    return (np.searchsorted(timeline.stamps, at + 1e-3, side="right") - 1).tolist()


def _take(path: str, size: int, wanted: list[int], by_stamp: bool) -> list[np.ndarray] | None:
    """The pictures at the rising time stamps `wanted`, or at those numbers if not `by_stamp`.

    None if the decoder's stamps do not rise: they say nothing then.
    """
    pictures: list[np.ndarray] = []
    before, before_key, turn = None, None, None
    with open_video(path) as (container, stream):
        for number, frame in enumerate(_decoded(container, stream)):
            turn = turn or read_orientation(frame)
            key = frame.pts if by_stamp else number
            if key is None or (before_key is not None and key <= before_key):
                return None
            left = wanted[len(pictures) :]
            if late := sum(want < key for want in left):
                pictures += [render_frame(before or frame, turn, size)] * late
            if due := left.count(key):
                pictures += [render_frame(frame, turn, size)] * due
            if len(pictures) == len(wanted):
                return pictures
            before, before_key = frame, key
        if before:
            pictures += [render_frame(before, turn, size)] * (len(wanted) - len(pictures))
    return pictures


def read_orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """How the file asks to show its pictures: whether rows and columns change places first,
    then the steps (1, or -1 for mirrored) through rows and columns.

    Asked of one frame a file: a frame that was asked stays in memory until Python looks for
    reference cycles.
    """
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return False, 1, 1
    # x' = a x + c y and y' = b x + d y; only the eight turns and mirrorings occur.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    swap = abs(a) < abs(b)
    right, down = (c, b) if swap else (a, d)
    return swap, -1 if down < 0 else 1, -1 if right < 0 else 1


def render_frame(frame: av.VideoFrame, turn: tuple[bool, int, int], size: int) -> np.ndarray:
    """uint8 [size, size, 3]: transparency over black, turned, resized and cropped."""
    see_through = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if see_through else "rgb24", threads=1)
    if see_through:
        pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255
    swap, down, right = turn
    pixels = (pixels.swapaxes(0, 1) if swap else pixels)[::down, ::right]
    return resize_and_crop(np.ascontiguousarray(pixels, np.uint8), size)


def decoder_of(stream) -> av.VideoCodecContext:
    decoder = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
    # Clips are decoded side by side; threads within one would only get in each other's way.
    decoder.thread_count = 1
    return decoder


def _decoded(container, stream) -> Iterator[av.VideoFrame]:
    """All frames that decode, in order of display; damaged packets are passed over."""
    decoder, packets = decoder_of(stream), container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            packet = None  # the file ends here; what the decoder still holds comes out below
        with contextlib.suppress(av.FFmpegError):
            yield from decoder.decode(packet)
        if packet is None or not packet.size:
            return


@contextlib.contextmanager
def open_video(path: str):
    """The open container and its video stream (no cover picture); raises DataError."""
    try:
        # An absolute path is never taken for an address such as "http:".
        place, options = os.path.abspath(path), {"protocol_whitelist": "file"}
        with av.open(place, metadata_errors="replace", options=options) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise _unreadable(path, "no video stream in it")
            best = container.streams.best("video")
            stream = best if best in streams else streams[0]
            if stream.codec_context is None:
                raise _unreadable(path, "no decoder for its video")
            yield container, stream
    except av.FFmpegError as error:
        empty = os.path.isfile(path) and not os.path.getsize(path)
        raise _unreadable(path, "empty file" if empty else error.strerror) from None


def _unreadable(path: str, reason: str) -> DataError:
    return DataError(
        f"{path}: not a readable video ({reason}); replace the file or leave its captions out"
    )
