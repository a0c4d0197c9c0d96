"""An index is built in chunks, goes on when it was killed, and touches only what has changed."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data.errors import DataError, UsageError
from hvp_jax.cli import main
from hvp_jax.monitoring import process_identity
from hvp_jax.search import table
from hvp_jax.search.building import build as building
from hvp_jax.search.building import encoding, pending
from hvp_jax.search.query import Index
from tests.helpers.command import COMPILED, ROOT
from tests.helpers.search_clips import write_clip
from tests.search.conftest import LONG, NAMES, SECONDS, write_videos

STRETCHES = 4  # of the long video

# `run.py` with chunks of two clips.
IN_CHUNKS = """
import sys
from hvp_jax.cli import main
from hvp_jax.search.building import encoding
encoding.CHUNK = 2
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture
def build(retriever, monkeypatch):
    """`build` in chunks of two clips."""
    monkeypatch.setattr(encoding, "CHUNK", 2)
    return functools.partial(building.build, retriever, segment_seconds=SECONDS)


@pytest.fixture
def encoded(retriever, monkeypatch):
    """The numbers of clips that are encoded at a time."""
    counts = []
    encode = retriever.encode_frames
    monkeypatch.setattr(
        retriever, "encode_frames", lambda frames: counts.append(len(frames)) or encode(frames)
    )
    return counts


def contents(uri) -> dict:
    """The rows of a table by their ids."""
    rows = table.open_dataset(uri).to_table().to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def same_to_rounding(ours: dict, theirs: dict) -> None:
    """Which clips are encoded together changes features by rounding only."""
    assert ours.keys() == theirs.keys()
    for id, row in ours.items():
        for name, value in row.items():
            other = theirs[id][name]
            if name in ("vector", "token_scale", "token_weights", "tap_weights"):
                assert value == pytest.approx(other, rel=1e-5, abs=1e-5), (id, name)
            elif name == "tokens":
                assert max(abs(a - b) for a, b in zip(value, other, strict=True)) <= 3, id
            else:
                assert value == other, (id, name)


def test_what_can_be_read_is_indexed_and_the_rest_is_named(built):
    result = built.result
    assert result.ok and (result.videos, result.added) == (len(NAMES) + 1, len(NAMES) + 1)
    assert result.clips == len(NAMES) + STRETCHES and not result.missing
    assert result.skipped == {"broken.mp4": "empty file", "notes.mkv": "a text file, not a video"}
    assert "skipped broken.mp4: empty file" in result.text
    assert "11 videos; 11 added, 0 changed, 0 removed, 2 skipped" in result.text
    rows = contents(built.uri)
    assert rows[f"{LONG}@30-50"]["duration"] == 50 and rows[f"{LONG}@30-50"]["path"] == LONG
    assert pending.read(built.uri, []) == []


def test_only_what_has_changed_is_touched(build, encoded, tmp_path):
    videos, uri = write_videos(tmp_path / "clips"), tmp_path / "index"
    build(videos, uri)
    before, first = contents(uri), sum(encoded)
    assert first == len(NAMES) + STRETCHES
    again = build(videos, uri)
    assert sum(encoded) == first and (again.added, again.changed, again.removed) == (0, 0, 0)
    assert contents(uri) == before
    (videos / "clip1.mp4").unlink()
    shutil.rmtree(videos / "2024/deeper")
    write_clip(videos / "clip2.mp4", 77)
    write_clip(videos / "new.mp4", 78)
    (videos / "clip4.mp4").write_bytes(b"broken now")
    result = build(videos, uri)
    assert (result.added, result.changed, result.removed) == (1, 1, 3)
    assert sum(encoded) == first + 2
    after = contents(uri)
    assert after.keys() == before.keys() - {"clip1.mp4", "2024/deeper/b.mp4", "clip4.mp4"} | {
        "new.mp4"
    }
    assert {id for id in before.keys() & after.keys() if before[id] != after[id]} == {"clip2.mp4"}


def test_a_killed_command_goes_on(build, built, run_dir, retriever, videos, tmp_path, encoded):
    """SIGKILL, then a stop in the midst of a chunk, then a stop between commit and clean-up."""
    uri = tmp_path / "index"
    flags = f"--weights={run_dir}", f"--videos={videos}", f"--index={uri}"
    process = subprocess.Popen(
        [sys.executable, "-c", IN_CHUNKS, "index", *flags, f"--segment-seconds={SECONDS}"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | COMPILED,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and len(list(uri.glob("pending/clips-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = sum(len(part.videos) for part in pending.read(uri, []))
    assert process.returncode == -signal.SIGKILL and 0 < kept < len(NAMES) + 1
    with pytest.raises(UsageError, match="has no clips yet: run the same `index` again"):
        Index(uri, retriever)
    write = pending.write

    def stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            build(videos, uri)
        patch.setattr(pending, "write", write)
        patch.setattr(pending.storage, "remove", interrupted_at("clips-"))
        with pytest.raises(KeyboardInterrupt):
            build(videos, uri)
    assert build(videos, uri).added == 0
    same_to_rounding(contents(uri), contents(built.uri))
    assert sum(encoded) <= len(NAMES) + STRETCHES - kept + 1


def interrupted_at(name):
    remove = pending.storage.remove

    def stop(path):
        if name in str(path):
            raise KeyboardInterrupt
        remove(path)

    return stop


def test_shards_are_joined_at_once(build, built, videos, tmp_path):
    uri = tmp_path / "index"
    first = build(videos, uri, shard=(0, 2))
    assert first.ok and not first.clips and "encoded 6 videos of shard 0/2" in first.text
    half = build(videos, uri, join=True)
    assert not half.ok and half.missing == 6 and "6 videos are not encoded yet" in half.text
    second = build(videos, uri, shard=(1, 2))
    assert first.added + second.added == len(NAMES) + 1
    joined = build(videos, uri, join=True)
    assert joined.ok and joined.skipped == built.result.skipped and not joined.missing
    same_to_rounding(contents(uri), contents(built.uri))


def test_what_was_encoded_twice_is_in_the_table_once(build, videos, tmp_path):
    uri = tmp_path / "index"
    build(videos, uri, shard=(0, 2))
    copies = tmp_path / "copies"
    shutil.copytree(uri / "pending", copies)
    build(videos, uri)
    before = contents(uri)
    for path in copies.iterdir():
        shutil.copy(path, uri / "pending")
    build(videos, uri)
    assert contents(uri) == before


def test_an_index_is_of_one_model_one_folder_and_one_way_to_cut(build, built, retriever, tmp_path):
    place = retriever.weights
    refused = functools.partial(pytest.raises, UsageError)
    videos = json.loads((built.uri / "index.json").read_text())["root"]
    with refused(match="--segment-seconds is 30, but .* was made with 20"):
        build(videos, built.uri, segment_seconds=30)
    with refused(match="--tokens is int8, but .* was made with int16"):
        build(videos, built.uri, tokens="int8")
    write_clip(tmp_path / "clips/a.mp4", 1)
    with refused(match=f"--videos is {tmp_path}/clips, but"):
        build(tmp_path / "clips", built.uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retriever, "fingerprint", "another")
        with refused(match=f"{place} is another model than the one that"):
            build(videos, built.uri)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no video in it"):
        build(tmp_path / "empty", built.uri)


def test_an_index_that_another_process_writes_is_refused(build, videos, tmp_path):
    uri = tmp_path / "index"
    uri.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        identity = process_identity.identify() | {"run": "other", "pid": other.pid}
        identity["start_ticks"] = process_identity._state_and_start(other.pid)[1]
        (uri / "lock.json").write_text(json.dumps(identity))
        with pytest.raises(UsageError, match=f"in use by another run: process {other.pid} on host"):
            build(videos, uri)
        other.communicate(b"\n")


def test_int8_tokens_are_half_as_large(build, built, retriever, tmp_path, videos):
    uri = tmp_path / "index"
    build(videos, uri, tokens="int8")
    exact, rounded = (
        Index(place, retriever).search(["a small dog"], k=20, exact=True)[0]
        for place in (built.uri, uri)
    )
    scores = {hit.id: hit.score for hit in exact}
    errors = [abs(hit.score - scores[hit.id]) for hit in rounded]
    assert 1e-5 < max(errors) < 2e-2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shard=2/2",), "argument --shard: '2/2' is not I/N with I from 0 to N - 1"),
        (("--shard=0/2", "--join"), "--shard encodes videos and --join commits them"),
        (("--segment-seconds=0",), "'0' is not a whole number from 1 on"),
        (("--tokens=float16",), "invalid choice: 'float16'"),
    ],
)
def test_wrong_flags_are_refused(flags, message, capsys):
    given = "--weights=run", "--videos=clips", "--index=index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main.distributed, "exit_now", lambda status: None)
        assert main.main(["index", *given, *flags]) == 2
    assert message in capsys.readouterr().err
