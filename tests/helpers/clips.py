"""Writes video files for tests: ordinary ones, unusual ones and damaged ones."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 4  # grey levels between two numbered frames


def numbered(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """At most 60 frames [height, width, 3]; the grey level encodes the number of the frame."""
    return [np.full((height, width, 3), STEP * i, np.uint8) for i in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of decoded frames [n, size, size, 3] of `numbered`."""
    return np.round(frames.mean((1, 2, 3)) / STEP).astype(int).tolist()


def quarters(width: int, height: int) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right; [height, width, 3]."""
    colours = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return colours[rows[:, None], columns]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    rate: Fraction | int = 10,
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    prepare: Callable | None = None,
    format: str | None = None,
) -> Path:
    """Writes uint8 frames [H, W, 3 or 4], `rate` per second or at the times `milliseconds`.

    `prepare(container, stream)` may change either before the first frame is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if milliseconds is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if prepare is not None:
            prepare(container, stream)
        encode(container, stream, frames, milliseconds)
    return path


def encode(container, stream, frames, milliseconds=None) -> None:
    for i, pixels in enumerate(frames):
        layout = "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(pixels, format=layout)
        if milliseconds is not None:
            frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_sound(path: Path, cover: bytes | None = None) -> Path:
    """A Matroska file with audio only, and `cover` (PNG) attached if given."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            container.add_attachment("cover.png", "image/png", cover)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate = 44100
        for i in range(20):
            frame.pts = 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def overstate_frames(path: Path, count: int) -> None:
    """Makes the header of an AVI claim `count` frames."""
    content = bytearray(path.read_bytes())
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        start = content.index(chunk) + offset
        content[start : start + 4] = count.to_bytes(4, "little")
    path.write_bytes(content)


def spoil_packets(path: Path, first: int, last: int) -> None:
    """Overwrites the packets `first` to `last`; the container stays intact."""
    with av.open(str(path)) as container:
        packets = [(p.pos, bytes(p)) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for position, packet in packets[first : last + 1]:
        start = content.index(packet, position)
        content[start : start + len(packet)] = b"\x55" * len(packet)
    path.write_bytes(content)


def cover() -> bytes:
    """A white PNG, larger than the videos."""
    file = io.BytesIO()
    Image.fromarray(np.full((300, 300, 3), 255, np.uint8)).save(file, "png")
    return file.getvalue()
