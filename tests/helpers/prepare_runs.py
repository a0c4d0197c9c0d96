"""Runs of `prepare` in a process of their own, to be killed."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

from data.records import Clip
from tests.helpers.command import ROOT

SIZE, FRAMES, CLIPS = 16, 3, 60
CLIP_BYTES = FRAMES * SIZE * SIZE * 3  # as the size of a shard: one clip per file
SCRIPT = """
import pickle, sys
from data.shards import builder, prepare
if __name__ == "__main__":
    builder.SHARD_BYTES = int(sys.argv[4])
    clips = pickle.load(open(sys.argv[1], "rb"))
    size, max_frames = int(sys.argv[5]), int(sys.argv[6])
    prepare.prepare(clips, sys.argv[2], size, max_frames, workers=int(sys.argv[3]))
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def start(clips: list[Clip], directory: Path, workers: int) -> subprocess.Popen:
    (directory.parent / "clips.pickle").write_bytes(pickle.dumps(clips))
    arguments = (directory.parent / "clips.pickle", directory, workers, CLIP_BYTES, SIZE, FRAMES)
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=ROOT)


def finished_shards(directory: Path) -> list[Path]:
    """The statistics of the finished shards in the staging folder."""
    return list(directory.glob("clips/incomplete.*/facts/*.json"))


def kill_after(run: subprocess.Popen, directory: Path, files: int, delay: float) -> None:
    """Kills the parent process only, `delay` seconds after `files` shards are finished."""
    while len(finished_shards(directory)) < files:
        assert run.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    run.kill()
    assert run.wait() == -signal.SIGKILL
