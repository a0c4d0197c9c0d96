"""Writes 200 damaged files and 50 good ones with unusual names, as a `folder` data set."""

import csv
import itertools
import os
import random
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data.video.inspection import DecodeRequest, FileJob, FileReport, decode_checked, inspect_file
from tests.helpers.clips import cover, encode, numbered, overstate_frames, write_sound, write_video

NAMES = (
    "plain", "two words", 'a "quoted" one', "it's", "new\nline", "carriage\rreturn", "tab\there",
    "-dash", "--config", "100%", "%d", "a#b?c=d&e", "semi;colon", "comma,comma", "back\\slash",
    "http:colon", "file:x", "pipe|x", "star*", "$HOME", "`ls`", "(paren)", "[0-9]", "{a,b}",
    "naïve", "日本語", "кошка", "🐈 cat", "عربي", "a\u200db", "e\u0301",
)  # fmt: skip
FORMATS = {  # extension: codec, pixel format, options
    "mp4": ("libx264", "yuv420p", {}),
    "mkv": ("libx264", "yuv420p", {"bf": "2"}),
    "avi": ("mpeg4", "yuv420p", {}),
    "webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "mov": ("mjpeg", "yuvj420p", {}),
}


def noisy_frames(seed: int) -> list[np.ndarray]:
    """2 s at 10 frames per second; with noise, damage to any packet changes its frame."""
    noise = np.random.default_rng(seed).integers(0, 60, (20, 48, 64, 3), np.uint8)
    return [grey + part for grey, part in zip(numbered(20), noise, strict=True)]


def write(path: Path, extension: str, seed: int) -> Path:
    codec, pix_fmt, options = FORMATS[extension]
    name = {"mkv": "matroska"}.get(extension, extension)
    return write_video(path, noisy_frames(seed), codec, pix_fmt, options=options, format=name)


def make_good(folder: Path) -> list[str]:
    """50 videos; one in five has the extension of another container, which is harmless."""
    names = []
    for i, extension in zip(range(50), itertools.cycle(FORMATS), strict=False):
        stem = NAMES[i] if i < len(NAMES) else f"good {i}"
        name = f"{stem}.{'mp4' if i % 5 == 4 else extension}"
        names.append(write(folder / name, extension, i).name)
    return names


def flip(content: bytes, seed: int, packets: list[tuple[int, int]]) -> bytes:
    """Changes 1% of the bytes of each packet (offset, size), but not the first 8 bytes."""
    damaged, rng = bytearray(content), random.Random(seed)
    for offset, size in packets:
        for _ in range(max(1, size // 100)):
            i = offset + rng.randrange(min(8, size - 1), size)
            damaged[i] ^= rng.randrange(1, 256)
    return bytes(damaged)


def packets_of(path: Path) -> list[tuple[int, int]]:
    """(offset, size) of each packet."""
    content, packets = path.read_bytes(), []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                packets.append((content.index(bytes(packet), packet.pos), packet.size))
    return packets


def _write_truncated(folder: Path) -> Iterator[tuple[str, str]]:
    reasons = {"mp4": "no index", "fast.mp4": "frames of the 20", "mkv": "frames of the 20"}
    reasons |= {"avi": "cut short", "webm": "cut short"}
    for extension, reason in reasons.items():
        original = folder / f"original.{extension}"
        if extension == "fast.mp4":
            with av.open(str(original), "w", options={"movflags": "faststart"}) as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height = 64, 48
                encode(container, stream, noisy_frames(0))
        else:
            write(original, extension, 0)
        content = original.read_bytes()
        original.unlink()
        for percent in range(15, 95, 10):
            name = f"cut at {percent}.{extension}"
            (folder / name).write_bytes(content[: len(content) * percent // 100])
            yield name, f"{reason}|stream is empty|Invalid data"


def _write_flipped(folder: Path) -> Iterator[tuple[str, str]]:
    for extension in ("mp4", "mkv", "avi"):
        original = write(folder / f"original.{extension}", extension, 1)
        content, packets = original.read_bytes(), packets_of(original)
        original.unlink()
        for seed in range(17):
            name = f"flipped {seed}.{extension}"
            (folder / name).write_bytes(flip(content, seed, packets))
            yield name, "damaged|no frame decodes"


def _write_other_files(folder: Path) -> Iterator[tuple[str, str]]:
    texts = ("a cat plays the piano\n" * 50, "<html>404 Not Found</html>", '{"a": 1}', "кот\n" * 9)
    for i in range(20):
        (folder / f"text {i}.mp4").write_text(texts[i % 4], encoding="utf-8")
        yield f"text {i}.mp4", "a text"
    for i in range(10):
        (folder / f"empty {i}.avi").touch()
        yield f"empty {i}.avi", "empty file"
    for i in range(10):
        (folder / f"zeros {i}.webm").write_bytes(bytes(1000 + i))
        yield f"zeros {i}.webm", "zeros"
    for i in range(15):  # another type of file with a video's extension
        path = folder / f"archive {i}.mkv"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", random.Random(i).randbytes(3000))
        yield path.name, "Invalid data"
    for i in range(15):
        write_sound(folder / f"sound {i}.mp4", cover() if i % 2 else None)
        yield f"sound {i}.mp4", "no video stream"


def _write_without_frames(folder: Path) -> Iterator[tuple[str, str]]:
    for i in range(10):
        path = folder / f"no frames {i}.{('mkv', 'mp4')[i % 2]}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height = 64, 48
            container.start_encoding()
        yield path.name, "stream is empty|before its first frame|no video stream"
    for i in range(15):
        path = write(folder / f"overstated {i}.avi", "avi", i)
        overstate_frames(path, 10**9)
        yield path.name, "20 frames of the 1000000000"


def _write_links_and_modes(folder: Path) -> Iterator[tuple[str, str]]:
    for i in range(7):
        os.symlink(f"loop {i}.mp4", folder / f"loop {i}.mp4")
        yield f"loop {i}.mp4", "a link that leads nowhere"
    for i in range(3):
        os.symlink("nowhere", folder / f"dead {i}.mp4")
        yield f"dead {i}.mp4", "does not exist"
    os.mkfifo(folder / "pipe 0.mp4")
    yield "pipe 0.mp4", "not a file"
    for i in range(3):
        path = write(folder / f"locked {i}.mp4", "mp4", 100 + i)
        path.chmod(0)
        yield path.name, "" if os.access(path, os.R_OK) else "permission denied"


def make_damaged(folder: Path) -> dict[str, str]:
    """200 files: name -> a regular expression for the reason that is expected. Empty if the file
    is good, since a user such as root can read a file whatever its mode."""
    writers = (
        *(_write_truncated, _write_flipped, _write_other_files),
        *(_write_without_frames, _write_links_and_modes),
    )
    return {name: reason for writer in writers for name, reason in writer(folder)}


def make_folder(root: Path) -> tuple[list[str], dict[str, str]]:
    """Writes a data set; returns the names of its good files, and `make_damaged`'s result."""
    (root / "videos").mkdir(parents=True)
    good, damaged = make_good(root / "videos"), make_damaged(root / "videos")
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("video_id", "caption", "split"))
        for i, name in enumerate([*good, *damaged]):
            rows.writerow((name, f"caption {i}", ("train", "train", "val", "test")[i % 4]))
    return good, damaged


def _misbehave(path: str) -> None:
    """Does what the file name says: hang, crash or allocate too much memory."""
    name = Path(path).stem
    while name == "hang":
        pass  # takes processor time, as a decoder does
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hoard":
        np.ones(1 << 30, np.uint8)


def inspect_or_misbehave(job: FileJob) -> FileReport:
    _misbehave(job.path)
    return inspect_file(job)


def decode_or_misbehave(clip: DecodeRequest) -> np.ndarray | str:
    _misbehave(clip.path)
    return decode_checked(clip)
