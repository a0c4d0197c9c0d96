"""Common to all data sets: directories, missing files, splits, broken annotation files."""

import dataclasses
import functools
import json
import logging

import pytest

from configs.msrvtt import get_config
from data import annotations
from data.checks import exclude
from data.errors import DataError, UsageError
from data.inputs import read_annotations, read_clips, read_data, read_dataset
from data.records import DatasetLocation
from tests.helpers import published


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


@pytest.fixture
def msrvtt(tmp_path):
    """A data set of 7 videos, 6 in train and one in test."""
    published.msrvtt(tmp_path, 4, 1, 2)
    videos = touch(tmp_path / "videos", *(f"video{i}.mp4" for i in range(7)))
    return DatasetLocation("msrvtt", annotations=str(tmp_path), videos=videos)


def folder(root):
    return DatasetLocation("folder", root=str(root))


def test_the_published_name_is_preferred_to_other_spellings(tmp_path, msrvtt):
    before = read_annotations(msrvtt)
    for name in ("MSRVTT_train.9000.csv", "msrvtt_TRAIN.9k.csv"):
        published.table(tmp_path / name, ["video_id"], ["other"])
    assert read_annotations(msrvtt) == before
    (tmp_path / "MSRVTT_train.9k.csv").unlink()
    with pytest.raises(DataError, match="both MSRVTT_train.9000.csv and msrvtt_TRAIN.9k.csv"):
        read_annotations(msrvtt)


def splits(clips):
    return {clip.clip_id: clip.split for clip in clips}


def test_all_files_exist(msrvtt):
    clips = read_dataset(msrvtt)
    assert [clip.path for clip in clips] == [f"{msrvtt.videos}/video{i}.mp4" for i in range(7)]
    assert clips == read_annotations(msrvtt).clips


def test_missing_files_are_counted_and_may_be_excluded(tmp_path, msrvtt):
    for i in (1, 3, 5, 6):
        (tmp_path / "videos" / f"video{i}.mp4").unlink()
    with pytest.raises(
        DataError, match=r"4 of 7 videos are missing: video1, video3, video5, \.\.\.; add"
    ):
        read_dataset(msrvtt)
    two = frozenset(("video1", "video3", "unknown"))
    with pytest.raises(DataError, match="2 of 5 videos are missing: video5, video6; add"):
        read_dataset(msrvtt, exclude=two)
    clips = read_dataset(msrvtt, exclude=two | {"video5", "video6"})
    assert [clip.clip_id for clip in clips] == ["video0", "video2", "video4"]
    missing = [c.clip_id for c in read_annotations(msrvtt).clips if not c.path]
    assert missing == ["video1", "video3", "video5", "video6"]


def test_only_the_videos_of_the_requested_splits_must_exist(tmp_path, msrvtt):
    read = functools.partial(read_dataset, msrvtt, val_fraction=0.5, seed=3)
    split_of = splits(read())
    assert set(split_of.values()) == {"train", "val", "test"}
    for video_id, split in split_of.items():
        if split == "train":
            (tmp_path / "videos" / f"{video_id}.mp4").unlink()
    clips = read(splits=("test", "val"))
    assert splits(clips) == split_of
    assert all(bool(clip.path) == (clip.split != "train") for clip in clips)
    count = list(split_of.values()).count("train")
    for requested, total in ((("train",), count), (None, len(split_of))):
        with pytest.raises(DataError, match=f"{count} of {total} videos are missing"):
            read(splits=requested)


def test_videos_may_be_missing_if_no_split_is_requested(msrvtt):
    with_videos = read_dataset(msrvtt)
    without_videos = dataclasses.replace(msrvtt, videos="")
    clips = read_dataset(without_videos, splits=())
    assert not any(clip.path for clip in clips)
    assert [c.clip_id for c in clips] == [c.clip_id for c in with_videos]
    with pytest.raises(UsageError, match="data.videos is empty"):
        read_dataset(without_videos, splits=("test",))


def test_missing_files_of_the_folder_format(tmp_path):
    touch(tmp_path / "videos", "a.mp4")
    table = "video_id,caption,split,start,end\na,1,train,,\nb,2,test,0,3\nb,3,test,3,5\nc,4,val,,\n"
    (tmp_path / "captions.csv").write_text(table)
    clips = read_annotations(folder(tmp_path)).clips
    assert [clip.clip_id for clip in clips] == ["a", "b@0-3", "b@3-5", "c"]
    assert [bool(clip.path) for clip in clips] == [True, False, False, False]
    with pytest.raises(DataError, match="2 of its videos are not in .*: b, c; "):
        read_dataset(folder(tmp_path))
    with pytest.raises(DataError, match="1 of its videos are not in .*: b; "):
        read_dataset(folder(tmp_path), exclude=frozenset(("b@0-3", "c")))
    rest = read_dataset(folder(tmp_path), exclude=frozenset("bc"))
    assert [clip.clip_id for clip in rest] == ["a"]
    assert read_dataset(folder(tmp_path), splits=("train",)) == clips
    with pytest.raises(DataError, match="1 of its videos are not in .*: c; "):
        read_dataset(folder(tmp_path), splits=("train", "val"))


def test_ids_without_captions_are_logged(tmp_path, caplog):
    published.activitynet(tmp_path, {"train": (1, 3), "test": (1, 1)})
    videos = touch(tmp_path / "videos", "v_train000000.mp4", "v_test_000000.mp4")
    with caplog.at_level(logging.WARNING):
        read_dataset(DatasetLocation("activitynet", annotations=str(tmp_path), videos=videos))
    assert len(caplog.records) == 1 and "2 ids of train have no captions" in caplog.text


def test_a_fraction_of_training_is_held_out(tmp_path):
    published.charades(tmp_path, 1000, 20)
    ids = [f"{split}{i:03d}.mp4" for split, n in (("tr", 1000), ("te", 20)) for i in range(n)]
    videos = touch(tmp_path / "videos", *ids)

    def held_out(val_fraction, seed=42, **options):
        location = DatasetLocation("charades", annotations=str(tmp_path), videos=videos)
        clips = read_dataset(location, val_fraction=val_fraction, seed=seed, **options)
        return {v for v, split in splits(clips).items() if split == "val"}

    few = held_out(0.05)
    assert 30 <= len(few) <= 70 and all(v.startswith("tr") for v in few)
    # These never change, whatever the machine or version.
    assert sorted(few)[:4] == ["tr035", "tr060", "tr078", "tr115"]
    assert few < held_out(0.2) and not held_out(0.0)
    assert held_out(0.05) == few and held_out(0.05, seed=1) != few
    most = held_out(0.99)
    assert len(most) > 950 and all(v.startswith("tr") for v in most)
    some = frozenset(sorted(few)[:5] + [f"tr{i:03d}" for i in range(0, 1000, 7)])
    assert held_out(0.05, exclude=some) == few - some


def test_segments_of_a_video_are_held_out_together(tmp_path):
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(40)))
    rows = [f"{i},x,train,{at},{at + 1}" for i in range(40) for at in range(4)]
    table = "\n".join(["video_id,caption,split,start,end", *rows])
    (tmp_path / "captions.csv").write_text(table)
    clips = read_dataset(folder(tmp_path), val_fraction=0.5)
    split_of_video = {clip.clip_id.split("@")[0]: clip.split for clip in clips}
    assert all(split_of_video[clip.clip_id.split("@")[0]] == clip.split for clip in clips)
    assert set(split_of_video.values()) == {"train", "val"}


def test_an_existing_validation_split_is_used(tmp_path):
    published.msrvtt(tmp_path, 50, 2, 2)
    videos = touch(tmp_path / "videos", *(f"video{i}.mp4" for i in range(54)))
    location = DatasetLocation("msrvtt", annotations=str(tmp_path), videos=videos)
    assert "val" in splits(read_dataset(location, val_fraction=0.3)).values()
    full = read_dataset(dataclasses.replace(location, protocol="full"), val_fraction=0.3)
    assert [v for v, split in splits(full).items() if split == "val"] == ["video50", "video51"]


def test_config_keys_reach_the_reader(msrvtt):
    config = get_config()
    config.data.annotations, config.data.videos = msrvtt.annotations, msrvtt.videos
    config.data.val_fraction, config.data.protocol, config.seed = 0.5, "7k", 3
    location = dataclasses.replace(msrvtt, protocol="7k")
    assert read_clips(config) == read_dataset(location, val_fraction=0.5, seed=3)
    assert read_clips(config) != read_dataset(msrvtt, seed=3)


def test_excluded_clips_have_the_split_they_would_be_in(msrvtt, tmp_path):
    config = get_config()
    config.data.annotations, config.data.videos = msrvtt.annotations, msrvtt.videos
    config.data.val_fraction = 0.5
    held = next(clip for clip in read_clips(config) if clip.split == "val")
    config.data.exclude = str(tmp_path / "ids.txt")
    exclude.write_ids(config.data.exclude, [held.clip_id])
    clips, excluded = read_data(config)
    assert held not in clips and excluded == [held]


def test_directories_that_are_missing_or_not_used(tmp_path, msrvtt):
    annotation_folder, videos = msrvtt.annotations, msrvtt.videos
    no_folder = f"{annotation_folder}/none"
    change = functools.partial(dataclasses.replace, msrvtt)
    for location, message in (
        (change(annotations=""), "data.annotations is empty"),
        (change(videos=""), "data.videos is empty"),
        (change(root=annotation_folder), "data.root is"),
        (change(annotations=no_folder), "none' does not exist; data.annotations"),
        (change(videos=no_folder), "none' does not exist; data.videos"),
        (
            change(dataset="lsmdc", protocol="9k"),
            "data.protocol is '9k'; data set 'lsmdc' has only one",
        ),
        (
            DatasetLocation("folder", root=videos, protocol="9k"),
            "data set 'folder' has only one",
        ),
        (
            DatasetLocation("folder", root=videos, annotations=annotation_folder),
            "data.annotations is",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            read_dataset(location)


JSON_FILES = {
    "msrvtt": "MSRVTT_data.json",
    "didemo": "val_data.json",
    "activitynet": "train_ids.json",
    "vatex": "vatex_validation_v1.0.json",
    "msvd": "captions_msvd.json",
}


@pytest.mark.parametrize("dataset", JSON_FILES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or not JSON"),
        (lambda text: "[" * 100_000, "cannot be read as JSON|truncated"),
        (lambda text: json.dumps([[json.loads(text)]]), "is not "),
        (lambda text: "null", "is not "),
        (lambda text: text.replace('"', '"\udcff', 1), "line 1 is not UTF-8"),
    ],
    ids=["truncated", "deep", "nested", "null", "latin"],
)
def test_broken_json_gives_a_one_line_error(tmp_path, dataset, change, message):
    few = {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    arguments = {"msvd": (few, "json"), "activitynet": (few,)}.get(dataset, ())
    getattr(published, dataset)(tmp_path, *arguments)
    path = tmp_path / JSON_FILES[dataset]
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        published.read_annotations(dataset, tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", annotations.PUBLISHED)
def test_byte_order_marks_and_line_endings_change_nothing(tmp_path, dataset):
    few = {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    for name in ("plain", "crlf"):
        arguments = (few,) if dataset in ("msvd", "activitynet") else ()
        getattr(published, dataset)(tmp_path / name, *arguments)
    for path in (tmp_path / "crlf").glob("*.[cjt]*"):
        text = path.read_text().rstrip("\n").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    before, after = (
        published.read_annotations(dataset, tmp_path / name) for name in ("plain", "crlf")
    )
    assert before == after and len(before.clips) >= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,description\na,x\n", "no column 'descriptions'; its header has: id, description"),
        ("", "no column 'id'; its header has: nothing"),
        ("id,descriptions\na,x, y\n", "line 2 has 3 fields, the header 2"),
        ('id,descriptions\na,"x\nb,y\n', "the row at line 2 has an unclosed quote"),
        ("id,descriptions\na,x\nb,one\rtwo\n\n", "line 4 has 1 fields, the header 2"),
    ],
)
def test_broken_tables_give_a_one_line_error(tmp_path, text, message):
    published.charades(tmp_path)
    (tmp_path / "Charades_v1_train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        published.read_annotations("charades", tmp_path)
