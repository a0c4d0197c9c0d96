"""Annotations, videos, exclude lists and `doctor` in a bucket."""

import json
from pathlib import Path

import pytest

from data import inputs
from data.annotations import common
from data.checks.quick_check import check_clips
from data.errors import DataError, UsageError
from data.records import Annotations, Clip, DatasetLocation
from data.shards.reader import open_shards
from data.storage import files
from data.synthetic import shapes
from data.video.decode import read_frames
from tests.helpers import published
from tests.helpers.bucket import emulated_bucket, no_fault
from tests.helpers.clips import numbered, write_video


@pytest.fixture(scope="module")
def bucket():
    with emulated_bucket() as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def healthy(bucket):
    yield
    bucket.fault = no_fault


def upload(folder: Path, to: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.upload(path, f"{to}/{path.relative_to(folder)}")


@pytest.fixture(scope="module")
def root(bucket, tmp_path_factory) -> str:
    """A data set in the bucket, with a broken file and one that is not there."""
    folder = tmp_path_factory.mktemp("set")
    for i in range(3):
        write_video(folder / f"videos/part/{i}.mp4", numbered(3 + i), rate=1)
    (folder / "videos/bad.mp4").write_text("not a video")
    (folder / "videos/.hidden.mp4").write_text("not seen")
    rows = [f"{name},caption of {name},train" for name in ("part/0", "part/1.mp4", "part/2", "bad")]
    (folder / "captions.csv").write_text("\r\n".join(["video_id,caption,split", *rows, ""]))
    upload(folder, "gs://bucket/set")
    return "gs://bucket/set"


def test_the_annotations_are_those_of_local_files(bucket, tmp_path):
    """JSON, tables, lists and a pickle; videos in several folders."""
    counts = {"train": (2, 5), "val": (1, 2), "test": (1, 2)}
    for name in ("msrvtt", "vatex", "msvd"):
        local = tmp_path / name
        getattr(published, name)(local / "annotations", *([counts] if name == "msvd" else []))
        ids = [clip.clip_id for clip in read(name, str(local), videos="").clips]
        for i, video_id in enumerate(ids[:4]):
            published.write(local / f"videos/{i % 2}/{video_id}.mp4", "x")
        upload(local, f"gs://bucket/{name}")
        ours, theirs = read(name, f"gs://bucket/{name}"), read(name, str(local))
        moved = [clip.path.replace(str(local), f"gs://bucket/{name}") for clip in theirs.clips]
        assert [clip.path for clip in ours.clips] == moved and any(moved)
        assert [clip.captions for clip in ours.clips] == [clip.captions for clip in theirs.clips]


def read(name: str, folder: str, videos: str = "videos") -> Annotations:
    videos = f"{folder}/{videos}" if videos else ""
    location = DatasetLocation(name, annotations=f"{folder}/annotations", videos=videos)
    return inputs.read_annotations(location)


def test_hidden_files_are_not_listed(root):
    names = [path.removeprefix(f"{root}/videos/") for path in common.walk(f"{root}/videos")]
    assert names == ["bad.mp4", "part/0.mp4", "part/1.mp4", "part/2.mp4"]


def test_what_is_missing_or_forbidden_is_one_line(root, bucket):
    location = DatasetLocation("folder", root="gs://bucket/nowhere")
    with pytest.raises(UsageError, match="^'gs://bucket/nowhere' does not exist; data.root must"):
        inputs.read_annotations(location)
    location = DatasetLocation("msrvtt", annotations=f"{root}", videos=f"{root}/videos")
    with pytest.raises(DataError, match=r"^gs://bucket/set: none of MSRVTT_data.json, .* exists"):
        inputs.read_annotations(location)
    bucket.fault = lambda method, url: 403
    location = DatasetLocation("folder", root=root)
    with pytest.raises(DataError, match=r"^gs://bucket/set: cannot be read: no right to do that"):
        inputs.read_annotations(location)


def test_doctor_writes_bad_ids_to_a_bucket_and_prepare_excludes_them(root, bucket, run_cli):
    command = ("--config=configs/folder.py", f"--config.data.root={root}", "--json")
    status, out, err = run_cli("doctor", *command, "--workdir=gs://bucket/check")
    assert status == 1 and "Traceback" not in err, err
    (bad,) = json.loads(out)["bad"]
    assert bad["path"] == f"{root}/videos/bad.mp4" and "a text file" in bad["reason"]
    written = bucket.files("check/")
    assert written["check/bad_ids.txt"] == b'"bad"\n'
    assert json.loads(written["check/doctor.json"])["bad"] == [bad]
    command += ("--config.model.variant=tiny", "--config.data.shards=gs://bucket/shards")
    status, out, err = run_cli("prepare", *command)
    assert status == 1 and "Traceback" not in err, err
    assert f"1 of 4 clips are missing or broken: bad ({bad['path']}: a text file" in err
    assert not bucket.files("shards/")
    command += ("--config.data.exclude=gs://bucket/check/bad_ids.txt",)
    status, out, err = run_cli("prepare", *command)
    assert status == 0 and json.loads(out)["splits"] == {"train": 3}, err
    assert open_shards("gs://bucket/shards", "train")[2]["captions"] == ("caption of part/2",)


def test_files_in_a_bucket_are_checked_before_a_run(root, bucket):
    good, gone = f"{root}/videos/part/0.mp4", f"{root}/videos/part/9.mp4"
    clips = [
        Clip("good", good, ("x",), "train"),
        Clip("late", good, ("x",), "train", 70.0, 80.0),
        Clip("gone", gone, ("x",), "train"),
    ]
    faults = {clip.clip_id: fault for clip, fault in check_clips(clips, progress=False)}
    assert faults.keys() == {"late", "gone"}
    assert "beyond the end" in faults["late"] and "no such object" in faults["gone"]
    with pytest.raises(DataError, match=f"^{gone}: .*no such object"):
        read_frames(gone, 16, 2)
    with pytest.raises(DataError, match=f"^{good}: start 70 s is beyond the end"):
        read_frames(good, 16, 2, start=70.0, end=80.0)


def test_the_built_in_clips_in_a_bucket(bucket, tmp_path):
    shapes.make_dataset("gs://bucket/shapes", 0, train=2, val=1, test=1)
    shapes.make_dataset(str(tmp_path / "shapes"), 0, train=2, val=1, test=1)
    expected = {
        f"shapes/{path.relative_to(tmp_path / 'shapes')}": path.read_bytes()
        for path in (tmp_path / "shapes").rglob("*.*")
    }
    assert bucket.files("shapes/") == expected and len(expected) == 5
