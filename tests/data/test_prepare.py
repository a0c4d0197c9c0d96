"""`prepare` in several processes, killed and started again."""

import functools
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.errors import DataError, UsageError
from data.records import Clip
from data.shards import builder, prepare, writer
from data.video import inspection
from data.worker_pool import IsolatedProcess
from tests.helpers.clips import write_video
from tests.helpers.command import ROOT
from tests.helpers.damaged import decode_or_misbehave

SIZE, FRAMES, CLIPS = 16, 3, 60
ONE = FRAMES * SIZE * SIZE * 3  # bytes of a clip: each becomes a file of its own
SCRIPT = """
import pickle, sys
from data.shards import builder, prepare
if __name__ == "__main__":
    builder.SHARD_BYTES = int(sys.argv[4])
    clips = pickle.load(open(sys.argv[1], "rb"))
    prepare.prepare(clips, sys.argv[2], int(sys.argv[5]), int(sys.argv[6]), None, int(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(builder, "SHARD_BYTES", ONE)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(6):
        write_video(folder / f"{i}.mp4", rng.integers(0, 256, (4, 32, 32, 3), np.uint8), rate=1)
    return [
        Clip(
            f"clip{i}", str(folder / f"{i % 6}.mp4"), (f"text {i}",), ("train", "test")[i % 9 == 0]
        )
        for i in range(CLIPS)
    ]


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes that nobody kills."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_BYTES", ONE)
        prepare.prepare(clips, str(directory), SIZE, FRAMES, workers=1)
    found = contents(directory)
    assert len(found) == CLIPS + 3  # and metadata.json, features.json, dataset_info.json
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def start(clips: list[Clip], directory: Path, workers: int) -> subprocess.Popen:
    (directory.parent / "clips.pickle").write_bytes(pickle.dumps(clips))
    arguments = (directory.parent / "clips.pickle", directory, workers, ONE, SIZE, FRAMES)
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=ROOT)


def staged(directory: Path) -> list[Path]:
    return list(directory.glob("clips/incomplete.*/facts/*.json"))


def kill_after(run: subprocess.Popen, directory: Path, files: int, delay: float) -> None:
    """Kills the first process alone, a moment after `files` are finished."""
    while len(staged(directory)) < files:
        assert run.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    run.kill()
    assert run.wait() == -signal.SIGKILL


def test_the_number_of_processes_changes_nothing(clips, undisturbed, tmp_path, capfd):
    seen = []
    progress = lambda *counts: seen.append(counts)  # noqa: E731
    assert prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, progress, workers=3)["written"]
    assert contents(tmp_path) == undisturbed
    assert seen == sorted(seen) and seen[-1] == (CLIPS, CLIPS)
    assert capfd.readouterr() == ("", "")


def test_killed_at_any_moment_and_started_again(clips, undisturbed, tmp_path):
    directory = tmp_path / "shards"
    rng = random.Random(0)
    for files in (1, rng.randrange(5, 30), rng.randrange(35, 50)):
        run = start(clips, directory, workers=2)
        kill_after(run, directory, files, rng.uniform(0, 0.02))
        with pytest.raises(UsageError, match="no finished shards"):
            prepare.open_shards(str(directory), "train")
    before = {path: path.stat().st_mtime_ns for path in directory.glob("clips/*/files/*")}
    finished = [path.stem for path in staged(directory)]
    time.sleep(0.5)
    assert len(staged(directory)) - len(finished) <= 2  # the other processes have ended too
    assert prepare.prepare(clips, str(directory), SIZE, FRAMES, workers=2)["written"]
    assert contents(directory) == undisturbed
    for path, moment in before.items():
        if path.name in finished:  # not made anew
            assert (directory / "clips/1.0.0" / path.name).stat().st_mtime_ns == moment
    assert os.listdir(directory / "clips") == ["1.0.0"]


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_killed_while_the_finished_files_get_their_name(
    clips, undisturbed, tmp_path, monkeypatch, moment
):
    """An interruption here is as a kill there: nothing is tidied up on the way out."""

    def interrupted(folder, tasks, directory, write_info):
        if moment == "half":
            (folder / "files/features.json").write_text("{")
            (folder / "files/other.json").write_text("{")
        if moment == "after":
            conclude(folder, tasks, directory, write_info)
        raise KeyboardInterrupt

    conclude = writer.publish
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "publish", interrupted)
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    made = []
    examples = builder.examples
    with monkeypatch.context() as patch:
        patch.setattr(builder, "examples", lambda *some: made.append(some) or examples(*some))
        again = prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert made == [] and again["written"] == (moment != "after")
    assert contents(tmp_path) == undisturbed


def half_done(clips: list[Clip], directory: Path, monkeypatch) -> Path:
    """The folder of work of a run that was interrupted after ten clips."""

    def progress(done: int, of: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(clips, str(directory), SIZE, FRAMES, progress, workers=1)
    (folder,) = directory.glob("clips/incomplete.*")
    assert len(staged(directory)) == len(list(folder.glob("files/*"))) == 10
    return folder


@pytest.mark.parametrize("damage", ["content", "length", "facts", "absent"])
def test_a_damaged_file_is_made_again(clips, undisturbed, tmp_path, monkeypatch, damage):
    folder = half_done(clips, tmp_path, monkeypatch)
    path = sorted(folder.glob("files/*"))[3]
    whole = path.read_bytes()
    if damage == "content":
        path.write_bytes(whole[:1000] + b"x" + whole[1001:])
    elif damage == "length":
        path.write_bytes(whole[:1000])
    elif damage == "facts":
        (folder / "facts" / f"{path.name}.json").write_text("{")
    else:
        path.unlink()
    (folder / "left.partial").write_bytes(b"half")
    prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert contents(tmp_path) == undisturbed


def test_files_of_other_clips_are_removed(clips, undisturbed, tmp_path, monkeypatch, caplog):
    folder = half_done(clips[1:], tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO, "data"):
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert f"{folder}: removed" in caplog.text
    assert contents(tmp_path) == undisturbed


def test_says_how_much_room_it_needs_and_refuses_where_it_lacks(
    clips, tmp_path, monkeypatch, caplog
):
    def free(room: int):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))

    free(1000)
    directory = tmp_path / "shards"
    with pytest.raises(UsageError, match=r"0\.0 MiB free, 60 clips need about .*: make room"):
        prepare.prepare(clips, str(directory), SIZE, FRAMES)
    assert not directory.exists()
    free(1 << 30)
    with caplog.at_level(logging.INFO, "data"):
        half_done(clips, directory, monkeypatch)
    assert f"{directory}: 60 clips need about" in caplog.text and "1.0 GiB are free" in caplog.text
    free(1000)
    with pytest.raises(UsageError, match="50 clips need"):
        prepare.prepare(clips, str(directory), SIZE, FRAMES)
    assert len(staged(directory)) == 10


@pytest.fixture
def broken(clips, tmp_path) -> list[Clip]:
    """All clips, and four broken ones among them."""
    (tmp_path / "text.mp4").write_text("not a video")
    some = list(clips)
    for i in (3, 11, 12, 40):
        some.insert(i, Clip(f"broken{i}", str(tmp_path / "text.mp4"), ("text",), "train"))
    return some


REFUSED = (
    r"^4 of 64 clips are missing or broken: broken3 \(.*text\.mp4: a text.*\), broken11 .*\.\.\."
)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_broken_clips_are_counted_and_nothing_is_left(broken, tmp_path, workers):
    seen = []
    progress = lambda *counts: seen.append(counts)  # noqa: E731
    with pytest.raises(DataError, match=REFUSED):
        prepare.prepare(broken, str(tmp_path / "shards"), SIZE, FRAMES, progress, workers)
    assert seen[-1] == (64, 64)
    assert not (tmp_path / "shards").exists()


def test_clips_that_hang_or_crash_the_decoder_are_named(clips, tmp_path, monkeypatch):
    guard = functools.partial(IsolatedProcess, seconds=2, memory=1 << 29)
    for module in (writer, prepare):
        monkeypatch.setattr(module, "IsolatedProcess", guard)
    monkeypatch.setattr(inspection, "decode_checked", decode_or_misbehave)
    some = list(clips[:12])
    for i, name in ((2, "crash"), (5, "hoard"), (8, "hang")):
        shutil.copy(clips[0].path, tmp_path / f"{name}.mp4")
        some.insert(i, Clip(name, str(tmp_path / f"{name}.mp4"), ("text",), "train"))
    with pytest.raises(DataError) as raised:
        prepare.prepare(some, str(tmp_path / "shards"), SIZE, FRAMES, workers=2)
    said = str(raised.value)
    assert said.startswith("3 of 15 clips")
    told = ("crashes the decoder (SIGSEGV)", "needs more than 0.5 GiB", "takes the decoder more")
    for name, reason in zip(("crash", "hoard", "hang"), told, strict=True):
        assert f"{name} ({tmp_path / name}.mp4: {reason}" in said
    assert not multiprocessing.active_children()


def test_an_interruption_does_not_wait_for_a_clip_that_hangs(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "decode_checked", decode_or_misbehave)
    monkeypatch.setattr(prepare, "_require_room", lambda *arguments: None)
    shutil.copy(clips[0].path, tmp_path / "hang.mp4")
    hang = Clip("hang", str(tmp_path / "hang.mp4"), ("text",), "train")

    def progress(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare([hang, *clips], str(tmp_path / "shards"), SIZE, FRAMES, progress, workers=2)
    assert not multiprocessing.active_children()


BEAM = "--direct_num_workers=2 --direct_running_mode=multi_processing"


def test_beam_makes_the_same(clips, undisturbed, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    folder = half_done(clips, tmp_path, monkeypatch)
    assert folder.exists()
    assert prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, beam_options=BEAM)["written"]
    assert contents(tmp_path) == undisturbed


def test_beam_tells_of_all_broken_clips(broken, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(DataError, match=REFUSED):
        prepare.prepare(broken, str(tmp_path / "shards"), SIZE, FRAMES, beam_options=BEAM)
    assert not (tmp_path / "shards").exists()


def test_beam_that_is_not_there_is_asked_for(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match="requirements-beam.txt"):
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, beam_options=BEAM)
