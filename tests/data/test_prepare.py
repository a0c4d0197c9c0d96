"""`prepare` in several processes: killed, interrupted and resumed."""

import functools
import logging
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.errors import DataError, UsageError
from data.records import Clip
from data.shards import builder, prepare, staging, writer
from data.shards.reader import open_shards
from data.video import inspection
from data.worker_pool import IsolatedProcess
from tests.helpers.clips import write_video
from tests.helpers.damaged import decode_or_misbehave
from tests.helpers.prepare_runs import (
    CLIP_BYTES,
    CLIPS,
    FRAMES,
    SIZE,
    contents,
    finished_shards,
    kill_after,
    start,
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(builder, "SHARD_BYTES", CLIP_BYTES)


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
def uninterrupted(clips, tmp_path_factory) -> dict[str, bytes]:
    """The files that a single process writes without interruption."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_BYTES", CLIP_BYTES)
        prepare.prepare(clips, str(directory), SIZE, FRAMES, workers=1)
    expected = contents(directory)
    assert len(expected) == CLIPS + 3  # and metadata.json, features.json, dataset_info.json
    return expected


def test_number_of_processes_does_not_change_the_shards(clips, uninterrupted, tmp_path, capfd):
    calls = []
    progress = lambda *counts: calls.append(counts)  # noqa: E731
    assert prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, progress=progress, workers=3)[
        "written"
    ]
    assert contents(tmp_path) == uninterrupted
    assert calls == sorted(calls) and calls[-1] == (CLIPS, CLIPS)
    assert capfd.readouterr() == ("", "")


def test_resumes_after_a_kill_at_any_time(clips, uninterrupted, tmp_path):
    directory = tmp_path / "shards"
    rng = random.Random(0)
    for files in (1, rng.randrange(5, 30), rng.randrange(35, 50)):
        run = start(clips, directory, workers=2)
        kill_after(run, directory, files, rng.uniform(0, 0.02))
        with pytest.raises(UsageError, match="no finished shards"):
            open_shards(str(directory), "train")
    before = {path: path.stat().st_mtime_ns for path in directory.glob("clips/*/files/*")}
    finished = [path.stem for path in finished_shards(directory)]
    time.sleep(0.5)
    assert (
        len(finished_shards(directory)) - len(finished) <= 2
    )  # the worker processes have ended too
    assert prepare.prepare(clips, str(directory), SIZE, FRAMES, workers=2)["written"]
    assert contents(directory) == uninterrupted
    for path, mtime in before.items():
        if path.name in finished:  # not written again
            assert (directory / "clips/1.0.0" / path.name).stat().st_mtime_ns == mtime
    assert os.listdir(directory / "clips") == ["1.0.0"]


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_resumes_after_a_kill_during_publish(clips, uninterrupted, tmp_path, monkeypatch, when):
    """An interruption is like a kill here, since `prepare` does no cleanup in that case."""

    def interrupted(stage, shards, directory, write_info):
        if when == "during":
            (stage.files / "features.json").write_text("{")
            (stage.files / "other.json").write_text("{")
        if when == "after":
            publish(stage, shards, directory, write_info)
        raise KeyboardInterrupt

    publish = staging.publish
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging, "publish", interrupted)
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    calls = []
    examples = builder.examples
    with monkeypatch.context() as patch:
        patch.setattr(builder, "examples", lambda *args: calls.append(args) or examples(*args))
        result = prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert calls == [] and result["written"] == (when != "after")
    assert contents(tmp_path) == uninterrupted


def interrupt_prepare(clips: list[Clip], directory: Path, monkeypatch) -> Path:
    """The staging folder of a run that was interrupted after ten clips."""

    def progress(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(clips, str(directory), SIZE, FRAMES, progress=progress, workers=1)
    (folder,) = directory.glob("clips/incomplete.*")
    assert len(finished_shards(directory)) == len(list(folder.glob("files/*"))) == 10
    return folder


@pytest.mark.parametrize("damage", ["content", "length", "statistics", "missing"])
def test_a_damaged_shard_is_written_again(clips, uninterrupted, tmp_path, monkeypatch, damage):
    folder = interrupt_prepare(clips, tmp_path, monkeypatch)
    path = sorted(folder.glob("files/*"))[3]
    whole = path.read_bytes()
    if damage == "content":
        path.write_bytes(whole[:1000] + b"x" + whole[1001:])
    elif damage == "length":
        path.write_bytes(whole[:1000])
    elif damage == "statistics":
        (folder / "facts" / f"{path.name}.json").write_text("{")
    else:
        path.unlink()
    (folder / "left.partial").write_bytes(b"half")
    prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert contents(tmp_path) == uninterrupted


def test_unfinished_shards_of_other_clips_are_removed(
    clips, uninterrupted, tmp_path, monkeypatch, caplog
):
    folder = interrupt_prepare(clips[1:], tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO, "data"):
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, workers=1)
    assert f"{folder}: removed" in caplog.text
    assert contents(tmp_path) == uninterrupted


def test_logs_the_disk_space_needed_and_refuses_if_there_is_less(
    clips, tmp_path, monkeypatch, caplog
):
    def set_free_space(free: int):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    set_free_space(1000)
    directory = tmp_path / "shards"
    with pytest.raises(UsageError, match=r"0\.0 MiB free, 60 clips need about .*: free some"):
        prepare.prepare(clips, str(directory), SIZE, FRAMES)
    assert not directory.exists()
    set_free_space(1 << 30)
    with caplog.at_level(logging.INFO, "data"):
        interrupt_prepare(clips, directory, monkeypatch)
    assert f"{directory}: 60 clips need about" in caplog.text and "1.0 GiB are free" in caplog.text
    set_free_space(1000)
    with pytest.raises(UsageError, match="50 clips need"):
        prepare.prepare(clips, str(directory), SIZE, FRAMES)
    assert len(finished_shards(directory)) == 10


@pytest.fixture
def broken(clips, tmp_path) -> list[Clip]:
    """All clips, with four broken ones among them."""
    (tmp_path / "text.mp4").write_text("not a video")
    mixed = list(clips)
    for i in (3, 11, 12, 40):
        mixed.insert(i, Clip(f"broken{i}", str(tmp_path / "text.mp4"), ("text",), "train"))
    return mixed


REFUSED = (
    r"^4 of 64 clips are missing or broken: broken3 \(.*text\.mp4: a text.*\), broken11 .*\.\.\."
)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_broken_clips_are_counted_and_nothing_is_left(broken, tmp_path, workers):
    calls = []
    progress = lambda *counts: calls.append(counts)  # noqa: E731
    with pytest.raises(DataError, match=REFUSED):
        prepare.prepare(
            broken, str(tmp_path / "shards"), SIZE, FRAMES, progress=progress, workers=workers
        )
    assert calls[-1] == (64, 64)
    assert not (tmp_path / "shards").exists()


def test_clips_that_hang_or_crash_the_decoder_are_reported(clips, tmp_path, monkeypatch):
    limited = functools.partial(IsolatedProcess, seconds=2, memory=1 << 29)
    for module in (writer, prepare):
        monkeypatch.setattr(module, "IsolatedProcess", limited)
    monkeypatch.setattr(inspection, "decode_checked", decode_or_misbehave)
    mixed = list(clips[:12])
    for i, name in ((2, "crash"), (5, "hoard"), (8, "hang")):
        shutil.copy(clips[0].path, tmp_path / f"{name}.mp4")
        mixed.insert(i, Clip(name, str(tmp_path / f"{name}.mp4"), ("text",), "train"))
    with pytest.raises(DataError) as raised:
        prepare.prepare(mixed, str(tmp_path / "shards"), SIZE, FRAMES, workers=2)
    message = str(raised.value)
    assert message.startswith("3 of 15 clips")
    reasons = ("crashes the decoder (SIGSEGV)", "needs more than 0.5 GiB", "takes the decoder more")
    for name, reason in zip(("crash", "hoard", "hang"), reasons, strict=True):
        assert f"{name} ({tmp_path / name}.mp4: {reason}" in message
    assert not multiprocessing.active_children()


def test_an_interruption_does_not_wait_for_a_clip_that_hangs(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "decode_checked", decode_or_misbehave)
    monkeypatch.setattr(prepare, "_require_disk_space", lambda *arguments: None)
    shutil.copy(clips[0].path, tmp_path / "hang.mp4")
    hang = Clip("hang", str(tmp_path / "hang.mp4"), ("text",), "train")

    def progress(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(
            [hang, *clips], str(tmp_path / "shards"), SIZE, FRAMES, progress=progress, workers=2
        )
    assert not multiprocessing.active_children()


BEAM = "--direct_num_workers=2 --direct_running_mode=multi_processing"


def test_beam_writes_the_same_shards(clips, uninterrupted, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    folder = interrupt_prepare(clips, tmp_path, monkeypatch)
    assert folder.exists()
    assert prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, beam_options=BEAM)["written"]
    assert contents(tmp_path) == uninterrupted


def test_beam_reports_all_broken_clips(broken, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(DataError, match=REFUSED):
        prepare.prepare(broken, str(tmp_path / "shards"), SIZE, FRAMES, beam_options=BEAM)
    assert not (tmp_path / "shards").exists()


def test_error_if_beam_is_not_installed(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match="requirements-beam.txt"):
        prepare.prepare(clips, str(tmp_path), SIZE, FRAMES, beam_options=BEAM)
