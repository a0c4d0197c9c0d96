"""What is the same for all published data sets: places, missing files, splits, broken files."""

import json
import logging

import pytest

from configs.msrvtt import get_config
from data import annotations, inputs
from data.checks import exclude
from data.errors import DataError, UsageError
from data.inputs import read_clips, read_data
from tests.helpers import published


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


@pytest.fixture
def msrvtt(tmp_path):
    """Annotations of 8 videos, 7 of which are to train on and one to test, and their files."""
    published.msrvtt(tmp_path, 4, 1, 2)
    return str(tmp_path), touch(tmp_path / "videos", *(f"video{i}.mp4" for i in range(7)))


def test_the_published_name_comes_before_other_spellings(tmp_path, msrvtt):
    before = inputs.read_annotations("msrvtt", "", *msrvtt)
    for name in ("MSRVTT_train.9000.csv", "msrvtt_TRAIN.9k.csv"):
        published.table(tmp_path / name, ["video_id"], ["other"])
    assert inputs.read_annotations("msrvtt", "", *msrvtt) == before
    (tmp_path / "MSRVTT_train.9k.csv").unlink()
    with pytest.raises(DataError, match="MSRVTT_train.9000.csv or msrvtt_TRAIN.9k.csv"):
        inputs.read_annotations("msrvtt", "", *msrvtt)


def splits(clips):
    return {clip.clip_id: clip.split for clip in clips}


def test_all_files_there(msrvtt):
    clips = inputs.read_dataset("msrvtt", "", *msrvtt)
    assert [clip.path for clip in clips] == [f"{msrvtt[1]}/video{i}.mp4" for i in range(7)]
    assert clips == inputs.read_annotations("msrvtt", "", *msrvtt).clips


def test_missing_files_are_counted_and_may_be_excluded(tmp_path, msrvtt):
    for i in (1, 3, 5, 6):
        (tmp_path / "videos" / f"video{i}.mp4").unlink()
    with pytest.raises(
        DataError, match=r"4 of 7 videos are missing: video1, video3, video5, \.\.\.; add"
    ):
        inputs.read_dataset("msrvtt", "", *msrvtt)
    two = frozenset(("video1", "video3", "nobody"))
    with pytest.raises(DataError, match="2 of 5 videos are missing: video5, video6; add"):
        inputs.read_dataset("msrvtt", "", *msrvtt, exclude=two)
    clips = inputs.read_dataset("msrvtt", "", *msrvtt, exclude=two | {"video5", "video6"})
    assert [clip.clip_id for clip in clips] == ["video0", "video2", "video4"]
    absent = [c.clip_id for c in inputs.read_annotations("msrvtt", "", *msrvtt).clips if not c.path]
    assert absent == ["video1", "video3", "video5", "video6"]


def test_only_the_videos_of_the_splits_asked_for_must_be_there(tmp_path, msrvtt):
    place = ("msrvtt", "", *msrvtt, "", 0.5, 3)
    split_of = splits(inputs.read_dataset(*place))
    assert set(split_of.values()) == {"train", "val", "test"}
    for video_id, split in split_of.items():
        if split == "train":
            (tmp_path / "videos" / f"{video_id}.mp4").unlink()
    clips = inputs.read_dataset(*place, splits=("test", "val"))
    assert splits(clips) == split_of
    assert all(bool(clip.path) == (clip.split != "train") for clip in clips)
    count = list(split_of.values()).count("train")
    for wanted, of in ((("train",), count), (None, len(split_of))):
        with pytest.raises(DataError, match=f"{count} of {of} videos are missing"):
            inputs.read_dataset(*place, splits=wanted)


def test_no_videos_need_be_there_where_none_is_wanted(msrvtt):
    annotation_files, videos = msrvtt
    with_videos = inputs.read_dataset("msrvtt", "", annotation_files, videos)
    clips = inputs.read_dataset("msrvtt", "", annotation_files, "", splits=())
    assert not any(clip.path for clip in clips)
    assert [c.clip_id for c in clips] == [c.clip_id for c in with_videos]
    with pytest.raises(UsageError, match="data.videos is empty"):
        inputs.read_dataset("msrvtt", "", annotation_files, "", splits=("test",))


def test_missing_files_of_a_folder_of_your_own(tmp_path):
    touch(tmp_path / "videos", "a.mp4")
    table = "video_id,caption,split,start,end\na,1,train,,\nb,2,test,0,3\nb,3,test,3,5\nc,4,val,,\n"
    (tmp_path / "captions.csv").write_text(table)
    found = inputs.read_annotations("folder", str(tmp_path), "", "")
    assert [(c.clip_id, bool(c.path)) for c in found.clips] == [
        *(("a", True), ("b@0-3", False), ("b@3-5", False), ("c", False)),
    ]
    with pytest.raises(DataError, match="2 of its videos are not in .*: b, c; "):
        inputs.read_dataset("folder", str(tmp_path), "", "")
    with pytest.raises(DataError, match="1 of its videos are not in .*: b; "):
        inputs.read_dataset("folder", str(tmp_path), "", "", exclude=frozenset(("b@0-3", "c")))
    left = inputs.read_dataset("folder", str(tmp_path), "", "", exclude=frozenset("bc"))
    assert [clip.clip_id for clip in left] == ["a"]
    assert inputs.read_dataset("folder", str(tmp_path), "", "", splits=("train",)) == found.clips
    with pytest.raises(DataError, match="1 of its videos are not in .*: c; "):
        inputs.read_dataset("folder", str(tmp_path), "", "", splits=("train", "val"))


def test_ids_without_captions_are_told(tmp_path, caplog):
    published.activitynet(tmp_path, {"train": (1, 3), "test": (1, 1)})
    videos = touch(tmp_path / "videos", "v_train000000.mp4", "v_test_000000.mp4")
    with caplog.at_level(logging.WARNING):
        inputs.read_dataset("activitynet", "", str(tmp_path), videos)
    assert len(caplog.records) == 1 and "2 ids of train have no captions" in caplog.text


def test_a_share_of_training_is_held_out(tmp_path):
    published.charades(tmp_path, 1000, 20)
    ids = [f"{split}{i:03d}.mp4" for split, n in (("tr", 1000), ("te", 20)) for i in range(n)]
    videos = touch(tmp_path / "videos", *ids)

    def held(share, seed=42, **more):
        clips = inputs.read_dataset("charades", "", str(tmp_path), videos, "", share, seed, **more)
        return {v for v, split in splits(clips).items() if split == "val"}

    few = held(0.05)
    assert 30 <= len(few) <= 70 and all(v.startswith("tr") for v in few)
    # Whoever reads them, wherever and whenever: these never change.
    assert sorted(few)[:4] == ["tr035", "tr060", "tr078", "tr115"]
    assert few < held(0.2) and held(0.05) == few and held(0.05, seed=1) != few and not held(0.0)
    most = held(0.99)
    assert len(most) > 950 and all(v.startswith("tr") for v in most)
    some = frozenset(sorted(few)[:5] + [f"tr{i:03d}" for i in range(0, 1000, 7)])
    assert held(0.05, exclude=some) == few - some


def test_stretches_of_a_video_are_held_out_together(tmp_path):
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(40)))
    rows = [f"{i},x,train,{at},{at + 1}" for i in range(40) for at in range(4)]
    table = "\n".join(["video_id,caption,split,start,end", *rows])
    (tmp_path / "captions.csv").write_text(table)
    clips = inputs.read_dataset("folder", str(tmp_path), "", "", "", 0.5)
    of_video = {clip.clip_id.split("@")[0]: clip.split for clip in clips}
    assert all(of_video[clip.clip_id.split("@")[0]] == clip.split for clip in clips)
    assert set(of_video.values()) == {"train", "val"}


def test_a_split_of_its_own_is_kept(tmp_path):
    published.msrvtt(tmp_path, 50, 2, 2)
    videos = touch(tmp_path / "videos", *(f"video{i}.mp4" for i in range(54)))
    place = ("msrvtt", "", str(tmp_path), videos)
    assert "val" in splits(inputs.read_dataset(*place, "", 0.3)).values()
    full = inputs.read_dataset(*place, "full", 0.3)
    assert [v for v, split in splits(full).items() if split == "val"] == ["video50", "video51"]


def test_a_config_reaches_the_reader(msrvtt):
    config = get_config()
    config.data.annotations, config.data.videos = msrvtt
    config.data.val_fraction, config.data.protocol, config.seed = 0.5, "7k", 3
    assert read_clips(config) == inputs.read_dataset("msrvtt", "", *msrvtt, "7k", 0.5, 3)
    assert read_clips(config) != inputs.read_dataset("msrvtt", "", *msrvtt, "", 0.0, 3)


def test_what_is_left_out_is_of_the_split_it_would_be_in(msrvtt, tmp_path):
    config = get_config()
    config.data.annotations, config.data.videos = msrvtt
    config.data.val_fraction = 0.5
    held = next(clip for clip in read_clips(config) if clip.split == "val")
    config.data.exclude = str(tmp_path / "ids.txt")
    exclude.write_ids(config.data.exclude, [held.clip_id])
    clips, left_out = read_data(config)
    assert held not in clips and left_out == [held]


def test_places_that_are_lacking_or_too_many(tmp_path, msrvtt):
    folder, videos = msrvtt
    for arguments, says in (
        (("msrvtt", "", "", videos), "data.annotations is empty"),
        (("msrvtt", "", folder, ""), "data.videos is empty"),
        (("msrvtt", folder, folder, videos), "data.root is"),
        (("msrvtt", "", f"{folder}/none", videos), "none' does not exist; data.annotations"),
        (("msrvtt", "", folder, f"{folder}/none"), "none' does not exist; data.videos"),
        (("lsmdc", "", folder, videos, "9k"), "data.protocol is '9k'; data set 'lsmdc' has but"),
        (("folder", folder, "", "", "9k"), "data set 'folder' has but one"),
        (("folder", folder, folder, ""), "data.annotations is"),
    ):
        with pytest.raises(UsageError, match=says):
            inputs.read_dataset(*arguments)


CUT = {
    "msrvtt": "MSRVTT_data.json",
    "didemo": "val_data.json",
    "activitynet": "train_ids.json",
    "vatex": "vatex_validation_v1.0.json",
    "msvd": "captions_msvd.json",
}


@pytest.mark.parametrize("dataset", CUT)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[: len(text) // 2], "cut off or no JSON"),
        (lambda text: "[" * 100_000, "cannot be read as JSON|cut off"),
        (lambda text: json.dumps([[json.loads(text)]]), "is not "),
        (lambda text: "null", "is not "),
        (lambda text: text.replace('"', '"\udcff', 1), "line 1 is not UTF-8"),
    ],
    ids=["cut", "deep", "another", "null", "latin"],
)
def test_broken_json_is_one_line(tmp_path, dataset, change, says):
    few = {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    more = {"msvd": (few, "json"), "activitynet": (few,)}.get(dataset, ())
    getattr(published, dataset)(tmp_path, *more)
    path = tmp_path / CUT[dataset]
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(DataError, match=says) as caught:
        inputs.read_annotations(dataset, "", str(tmp_path), "")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", annotations.PUBLISHED)
def test_marks_and_ends_of_lines_change_nothing(tmp_path, dataset):
    few = {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    for folder in ("plain", "dressed"):
        more = (few,) if dataset in ("msvd", "activitynet") else ()
        getattr(published, dataset)(tmp_path / folder, *more)
    for path in (tmp_path / "dressed").glob("*.[cjt]*"):
        text = path.read_text().rstrip("\n").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    before, after = (
        inputs.read_annotations(dataset, "", str(tmp_path / folder), "")
        for folder in ("plain", "dressed")
    )
    assert before == after and len(before.clips) >= 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,description\na,x\n", "no column 'descriptions'; its header has: id, description"),
        ("", "no column 'id'; its header has: nothing"),
        ("id,descriptions\na,x, y\n", "line 2 has 3 fields, the header 2"),
        ('id,descriptions\na,"x\nb,y\n', "the row at line 2 has a quote that nothing closes"),
        ("id,descriptions\na,x\nb,one\rtwo\n\n", "line 4 has 1 fields, the header 2"),
    ],
)
def test_broken_tables_are_one_line(tmp_path, text, says):
    published.charades(tmp_path)
    (tmp_path / "Charades_v1_train.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        inputs.read_annotations("charades", "", str(tmp_path), "")
