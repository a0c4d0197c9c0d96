"""Makes 200 damaged files and 50 good ones with hard names, as a data set of the kind `folder`."""

import csv
import itertools
import os
import random
import signal
import time
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
KINDS = {  # container: codec, pixel format, options
    "mp4": ("libx264", "yuv420p", {}),
    "mkv": ("libx264", "yuv420p", {"bf": "2"}),
    "avi": ("mpeg4", "yuv420p", {}),
    "webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "mov": ("mjpeg", "yuvj420p", {}),
}


def pictures(seed: int) -> list[np.ndarray]:
    """2 s at 10 a second; noise gives every packet something to lose."""
    noise = np.random.default_rng(seed).integers(0, 60, (20, 48, 64, 3), np.uint8)
    return [grey + part for grey, part in zip(numbered(20), noise, strict=True)]


def write(path: Path, kind: str, seed: int) -> Path:
    codec, pix_fmt, options = KINDS[kind]
    name = {"mkv": "matroska"}.get(kind, kind)
    return write_video(path, pictures(seed), codec, pix_fmt, options=options, format=name)


def make_good(folder: Path) -> list[str]:
    """50 videos; one in five has the extension of another container, which hurts nobody."""
    made = []
    for i, kind in zip(range(50), itertools.cycle(KINDS), strict=False):
        name = f"{NAMES[i]}" if i < len(NAMES) else f"good {i}"
        ending = "mp4" if i % 5 == 4 else kind
        made.append(write(folder / f"{name}.{ending}", kind, i).name)
    return made


def flip(content: bytes, seed: int, packets: list[tuple[int, int]]) -> bytes:
    """Turns round a byte in a hundred of all packets (place, size) but for their first ones."""
    spoilt, chance = bytearray(content), random.Random(seed)
    for place, size in packets:
        for _ in range(max(1, size // 100)):
            at = place + chance.randrange(min(8, size - 1), size)
            spoilt[at] ^= chance.randrange(1, 256)
    return bytes(spoilt)


def packets_of(path: Path) -> list[tuple[int, int]]:
    content, found = path.read_bytes(), []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                found.append((content.index(bytes(packet), packet.pos), packet.size))
    return found


def _cut(folder: Path) -> Iterator[tuple[str, str]]:
    kinds = {"mp4": "no index", "fast.mp4": "frames of the 20", "mkv": "frames of the 20"}
    for kind, said in (kinds | {"avi": "cut short", "webm": "cut short"}).items():
        whole = folder / f"whole.{kind}"
        if kind == "fast.mp4":
            with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height = 64, 48
                encode(container, stream, pictures(0))
        else:
            write(whole, kind, 0)
        content = whole.read_bytes()
        whole.unlink()
        for percent in range(15, 95, 10):
            name = f"cut at {percent}.{kind}"
            (folder / name).write_bytes(content[: len(content) * percent // 100])
            yield name, f"{said}|stream is empty|Invalid data"


def _flipped(folder: Path) -> Iterator[tuple[str, str]]:
    for kind in ("mp4", "mkv", "avi"):
        whole = write(folder / f"whole.{kind}", kind, 1)
        content, packets = whole.read_bytes(), packets_of(whole)
        whole.unlink()
        for seed in range(17):
            name = f"flipped {seed}.{kind}"
            (folder / name).write_bytes(flip(content, seed, packets))
            yield name, "damaged|no frame decodes"


def _no_videos(folder: Path) -> Iterator[tuple[str, str]]:
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
    for i in range(15):  # another kind of file under the name of a video
        path = folder / f"archive {i}.mkv"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", random.Random(i).randbytes(3000))
        yield path.name, "Invalid data"
    for i in range(15):
        write_sound(folder / f"sound {i}.mp4", cover() if i % 2 else None)
        yield f"sound {i}.mp4", "no video stream"


def _hollow(folder: Path) -> Iterator[tuple[str, str]]:
    for i in range(10):
        path = folder / f"hollow {i}.{('mkv', 'mp4')[i % 2]}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height = 64, 48
            container.start_encoding()
        yield path.name, "stream is empty|before its first frame|no video stream"
    for i in range(15):
        path = write(folder / f"promise {i}.avi", "avi", i)
        overstate_frames(path, 10**9)
        yield path.name, "20 frames of the 1000000000"


def _links_and_modes(folder: Path) -> Iterator[tuple[str, str]]:
    for i in range(7):
        os.symlink(f"itself {i}.mp4", folder / f"itself {i}.mp4")
        yield f"itself {i}.mp4", "a link that leads nowhere"
    for i in range(3):
        os.symlink("gone", folder / f"dead {i}.mp4")
        yield f"dead {i}.mp4", "does not exist"
    os.mkfifo(folder / "pipe 0.mp4")
    yield "pipe 0.mp4", "not a file"
    for i in range(3):
        path = write(folder / f"locked {i}.mp4", "mp4", 100 + i)
        path.chmod(0)
        yield path.name, "" if os.access(path, os.R_OK) else "permission denied"


def make_damaged(folder: Path) -> dict[str, str]:
    """200 files: name -> what is to be said of it, a regular expression; empty: it is good,
    since who runs this may read a file whatever its mode."""
    makers = (_cut, _flipped, _no_videos, _hollow, _links_and_modes)
    return {name: said for maker in makers for name, said in maker(folder)}


def make_folder(root: Path) -> tuple[list[str], dict[str, str]]:
    """The names of the good and of the damaged files in `root`/videos, with a caption each."""
    (root / "videos").mkdir(parents=True)
    good, damaged = make_good(root / "videos"), make_damaged(root / "videos")
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("video_id", "caption", "split"))
        for i, name in enumerate([*good, *damaged]):
            rows.writerow((name, f"caption {i}", ("train", "train", "val", "test")[i % 4]))
    return good, damaged


def _misbehave(path: str) -> None:
    """Does what the name of a file says."""
    name = Path(path).stem
    if name == "hang":
        time.sleep(1000)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hoard":
        np.ones(1 << 30, np.uint8)


def examine_or_misbehave(job: FileJob) -> FileReport:
    _misbehave(job.path)
    return inspect_file(job)


def take_or_misbehave(clip: DecodeRequest) -> np.ndarray | str:
    _misbehave(clip.path)
    return decode_checked(clip)
