"""`prepare` from a bucket to a bucket: the shards of a local run, whatever happens on the way."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.batches import frame_sources, pipeline
from data.errors import DataError, UsageError
from data.records import Clip
from data.shards import builder, prepare
from data.shards.reader import open_shards
from data.storage import files, patience
from data.video import inspection
from tests.helpers.bucket import Fault, emulated_bucket, no_fault
from tests.helpers.clips import write_video
from tests.helpers.command import ROOT
from tests.helpers.prepare_runs import CLIP_BYTES, FRAMES, SCRIPT, SIZE, contents

COUNT = 12
SHARDS = "clips/1.0.0/"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(builder, "SHARD_BYTES", 3 * CLIP_BYTES)


@pytest.fixture(scope="module")
def bucket():
    with emulated_bucket() as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def healthy(bucket):
    yield
    bucket.fault = no_fault


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> list[Clip]:
    """Clips of local files; some are parts of a file."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(5):
        write_video(folder / f"{i}.mp4", rng.integers(0, 256, (6, 32, 32, 3), np.uint8), rate=1)
    return [
        Clip(
            f"clip{i}",
            str(folder / f"{i % 5}.mp4"),
            (f"text {i}",),
            ("train", "test")[i % 4 == 3],
            *((1.0, 4.0) if i >= 10 else (None, None)),
        )
        for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def clips(local, bucket) -> list[Clip]:
    """The same clips, of files in the bucket."""
    for path in {clip.path for clip in local}:
        files.upload(path, f"gs://bucket/videos/{Path(path).name}")
    return [moved(clip, f"gs://bucket/videos/{Path(clip.path).name}") for clip in local]


def moved(clip: Clip, path: str) -> Clip:
    return Clip(clip.clip_id, path, clip.captions, clip.split, clip.start, clip.end)


@pytest.fixture(scope="module")
def local_shards(local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_BYTES", 3 * CLIP_BYTES)
        prepare.prepare(local, str(folder), SIZE, FRAMES, workers=1)
    return folder


def uploaded(bucket, name: str) -> dict[str, bytes]:
    return {key.removeprefix(f"{name}/"): x for key, x in bucket.files(f"{name}/").items()}


def test_the_shards_and_batches_of_a_local_run(clips, local, local_shards, bucket):
    """Byte for byte, and nothing else is left in the bucket."""
    report = prepare.prepare(clips, "gs://bucket/same", SIZE, FRAMES, workers=1)
    expected = contents(local_shards)
    assert uploaded(bucket, "same") == expected and len(expected) == 4 + 3
    assert report["written"] and report["bytes"] == sum(map(len, expected.values()))
    before = len(bucket.requests)
    assert not prepare.prepare(clips, "gs://bucket/same", SIZE, FRAMES)["written"]
    assert {method for method, _ in bucket.requests[before:]} == {"GET"}

    def batches(of: list[Clip], directory: str) -> list:
        train = [clip for clip in of if clip.split == "train"]
        source = frame_sources.open_frames(train, SIZE, FRAMES, directory)
        source = pickle.loads(pickle.dumps(source))  # as for worker processes
        numbered = pipeline.numbered_batches(train, source, FRAMES, 8, batch_size=4, seed=0)
        iterator = pipeline.train_batches(numbered)
        return [next(iterator) for _ in range(5)]

    for ours, theirs in zip(
        batches(clips, "gs://bucket/same"), batches(local, str(local_shards)), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_resumes_after_kills(clips, local_shards, bucket, tmp_path):
    (tmp_path / "clips.pickle").write_bytes(pickle.dumps(clips))
    arguments = (tmp_path / "clips.pickle", "gs://bucket/killed", 1, 3 * CLIP_BYTES, SIZE, FRAMES)
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    for count in (1, 3):
        run = subprocess.Popen(command, cwd=ROOT)
        while len(facts(bucket, "killed")) < count:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        with pytest.raises(UsageError, match="gs://bucket/killed contains no finished shards"):
            open_shards("gs://bucket/killed", "train")
    finished = [f"gs://bucket/killed/{SHARDS}{name}" for name in facts(bucket, "killed")]
    written = {name: files.stat(name).mtime_ns for name in finished}
    damaged = finished[0]
    files.write_bytes(damaged, b"\0" + files.read_bytes(damaged)[1:])
    files.write_bytes(f"gs://bucket/killed/{SHARDS}left-over", b"of other clips")
    prepare.prepare(clips, "gs://bucket/killed", SIZE, FRAMES, workers=1)
    assert uploaded(bucket, "killed") == contents(local_shards)
    assert written[finished[1]] == files.stat(finished[1]).mtime_ns  # not written again


def forbidden_after_the_sample(name: str) -> Fault:
    """A file that is read once, when the size of the shards is estimated."""
    reads = []

    def fault(method: str, url: str) -> int | None:
        if f"{name}?" in url:
            reads.append(url)
        return 403 if f"{name}?" in url and len(reads) > 1 else None

    return fault


def facts(bucket, name: str) -> list[str]:
    """The shards that are finished according to their statistics."""
    found = [key for key in uploaded(bucket, name) if "/facts/" in key]
    return [Path(key).stem for key in found]


def test_beam_from_bucket_to_bucket(clips, local_shards, bucket):
    pytest.importorskip("apache_beam")
    options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    bucket.fault = forbidden_after_the_sample("videos/4.mp4")
    with pytest.raises(DataError, match=r"^gs://bucket/videos/4.mp4: .*no right"):
        prepare.prepare(clips, "gs://bucket/beam", SIZE, FRAMES, beam_options=options)
    bucket.fault = no_fault
    assert len(facts(bucket, "beam")) == 2  # the other shards need that file
    prepare.prepare(clips, "gs://bucket/beam", SIZE, FRAMES, beam_options=options)
    assert uploaded(bucket, "beam") == contents(local_shards)


def test_broken_and_vanished_videos_are_named_and_nothing_is_left(clips, bucket):
    files.write_bytes("gs://bucket/bad/text.mp4", b"not a video")
    files.write_bytes("gs://bucket/bad/empty.mp4", b"")
    files.write_bytes("gs://bucket/bad/gone.mp4", b"0")
    bad = [moved(clips[i], f"gs://bucket/bad/{name}.mp4") for i, name in enumerate(NAMES)]
    bucket.fault = lambda method, url: 404 if "bad/gone.mp4?" in url else None
    with pytest.raises(DataError) as raised:
        prepare.prepare([*bad, *clips[3:5]], "gs://bucket/refused", SIZE, FRAMES, workers=1)
    message = str(raised.value)
    assert message.startswith("3 of 5 clips are missing or broken: clip0 (gs://bucket/bad/text.mp4")
    assert "a text file" in message and "empty file" in message
    assert "gone.mp4: there is no such object" in message and "/tmp" not in message
    assert not bucket.files("refused/")


NAMES = ("text", "empty", "gone")


def test_a_missing_right_is_one_line_and_keeps_what_is_finished(clips, bucket):
    bucket.fault = forbidden_after_the_sample("videos/4.mp4")
    with pytest.raises(DataError, match=r"^gs://bucket/videos/4.mp4: .*no right to do that") as e:
        prepare.prepare(clips, "gs://bucket/rights", SIZE, FRAMES, workers=1)
    assert "\n" not in str(e.value) and len(facts(bucket, "rights")) == 1
    bucket.fault = lambda method, url: 403 if method == "POST" else None
    with pytest.raises(UsageError, match="^cannot write shards to gs://bucket/other: .*no right"):
        prepare.prepare(clips, "gs://bucket/other", SIZE, FRAMES, workers=1)


def test_shards_that_are_not_whole_are_refused(clips, bucket):
    prepare.prepare(clips, "gs://bucket/lost", SIZE, FRAMES, workers=1)
    shards = open_shards("gs://bucket/lost", "test", clips)
    name = next(name for name in uploaded(bucket, "lost") if "test" in name)
    files.remove(f"gs://bucket/lost/{name}")
    with pytest.raises(DataError, match="gs://bucket/lost: clip clip3 cannot be read"):
        shards[0]
    with pytest.raises(DataError, match="missing or truncated"):
        open_shards("gs://bucket/lost", "test")
    files.write_bytes(clips[3].path.replace("videos", "changed"), b"other")
    changed = [moved(clips[3], clips[3].path.replace("videos", "changed"))]
    with pytest.raises(DataError, match=r"clip3 \(gs://bucket/changed/3.mp4 had .* has 5\)"):
        open_shards("gs://bucket/lost", "test", changed)


def test_shards_on_s3_are_refused():
    with pytest.raises(UsageError, match="^data.shards is s3://bucket/x, .* copy them"):
        open_shards("s3://bucket/x", "train")


def test_a_clip_is_decoded_as_from_a_local_file(clips, local):
    for ours, theirs in zip(clips[:1] + clips[-1:], local[:1] + local[-1:], strict=True):
        requests = [
            inspection.DecodeRequest(clip.path, clip.start, clip.end, FRAMES, SIZE)
            for clip in (ours, theirs)
        ]
        a, b = map(inspection.decode_checked, requests)
        np.testing.assert_array_equal(a, b)


def test_a_bucket_that_does_not_answer_is_one_line(clips, bucket, monkeypatch):
    """The client of ArrayRecord repeats its requests for a quarter of an hour."""
    prepare.prepare(clips, "gs://bucket/silent", SIZE, FRAMES, workers=1)
    shards = open_shards("gs://bucket/silent", "test", clips)
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    bucket.fault = lambda method, url: 503
    with pytest.raises(DataError, match=r"gs://bucket/silent: clip clip3 .*: no answer for 0.5 s$"):
        shards[0]
