"""Broken and unusual clips and captions are found, each with its reason, and no others."""

import json
import logging
import re

import numpy as np
import pytest

from data.checks import doctor, exclude
from data.errors import UsageError
from data.records import Annotations, Clip
from data.shards.reader import open_shards
from data.video.decode import read_frames
from data.video.inspection import DecodeRequest, FileJob, decode_checked, inspect_file
from hvp_jax.cli.verbs.doctor import table
from tests.helpers.clips import numbered, spoil_packets, write_video
from tests.helpers.damaged import (
    FORMATS,
    flip,
    inspect_or_misbehave,
    make_folder,
    packets_of,
    write,
)

FULL_VIDEO = ((None, None),)


def test_200_damaged_files_among_50_good_ones(tmp_path, run_cli):
    good, damaged = make_folder(tmp_path / "set")
    assert (len(good), len(damaged)) == (50, 200)
    reasons = {name: reason for name, reason in damaged.items() if reason}
    command = (
        *("doctor", "--config=configs/folder.py", f"--config.data.root={tmp_path / 'set'}"),
        *(f"--workdir={tmp_path / 'check'}", "--json"),
    )
    status, out, err = run_cli(*command)
    assert status == 1 and "Traceback" not in err, err
    result = json.loads(out)
    reported = {entry["video_id"]: entry["reason"] for entry in result["bad"]}
    assert reported.keys() == reasons.keys()
    assert not {n: reason for n, reason in reported.items() if not re.search(reasons[n], reason)}
    assert not {name for w in result["warnings"] for name in w["video_ids"]} & set(good)
    assert sum(split["missing"] for split in result["splits"].values()) == 3  # the dead links
    assert sum(split["broken"] for split in result["splits"].values()) == len(reasons) - 3
    assert sum(split["videos"] for split in result["splits"].values()) == 250
    written = json.loads((tmp_path / "check" / "doctor.json").read_text())
    assert written == result

    bad_ids = tmp_path / "check" / "bad_ids.txt"
    assert exclude.read_ids(str(bad_ids)) == reasons.keys()
    status, out, err = run_cli(*command, f"--config.data.exclude={bad_ids}")
    assert status == 0, err
    again = json.loads(out)
    assert again["ok"] and sum(s["excluded"] for s in again["splits"].values()) == len(reasons)
    assert exclude.read_ids(str(bad_ids)) == reasons.keys()  # as after the first run

    shard_folder = tmp_path / "shards"
    command = ("prepare", *command[1:3], "--config.model.variant=tiny", "--config.data.workers=2")
    command += (f"--config.data.shards={shard_folder}",)
    status, out, err = run_cli(*command)
    assert status == 1 and "Traceback" not in err, err
    assert f"\nerror: {len(reasons)} of 250 clips are missing or broken: " in err
    assert not shard_folder.exists()
    status, out, err = run_cli(*command, f"--config.data.exclude={bad_ids}")
    assert status == 0, err
    written = [open_shards(str(shard_folder), split).clip_ids for split in ("train", "val", "test")]
    assert set().union(*written) == {*good, *damaged} - reasons.keys()
    assert sum(map(len, written)) == 250 - len(reasons)


def test_a_file_that_hangs_or_crashes_the_decoder_does_not_affect_others(tmp_path):
    path = str(write_video(tmp_path / "good.mp4", numbered(12)))
    names = ["hang", "crash", "hoard", "crash", "hang"]
    clips = [Clip(str(i), str(tmp_path / name), ("x",), "train") for i, name in enumerate(names)]
    clips += [Clip(f"good{i}", path, ("x",), "train", i / 10, 1.0) for i in range(5)]
    inspected = doctor.inspect_clips(
        *(clips, 4),
        processes=2,
        seconds=3,
        memory=1 << 29,
        progress=False,
        work=inspect_or_misbehave,
    )
    faults = [item.segment.fault for item in inspected]
    assert faults[0] == faults[4] == "takes the decoder more than 3 s of processor time"
    assert faults[1] == faults[3] == "crashes the decoder (SIGSEGV)"
    assert faults[2] == "needs more than 0.5 GiB of memory"
    assert faults[5:] == [""] * 5


def buggy_work(job):
    raise KeyError("bug")


def test_a_bug_in_the_inspection_is_raised(tmp_path):
    clip = Clip("a", str(tmp_path / "a"), ("x",), "train")
    with pytest.raises(RuntimeError, match="KeyError.*bug"):
        doctor.inspect_clips([clip], 4, progress=False, work=buggy_work)


@pytest.mark.parametrize(
    "damaged_packets, fault, damage",
    [
        ((10, 10), "1 of the 8 frames to take are damaged", ""),
        ((0, 0), "1 of the 8 frames to take are damaged", ""),
        ((37, 37), "", "1 of its 40 frames are damaged"),
        ((36, 39), "4 of its 40 frames are damaged", ""),
    ],
    ids=["taken", "first", "not taken", "many"],
)
def test_damaged_frames_are_a_fault_if_training_takes_them(
    tmp_path, damaged_packets, fault, damage
):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, *damaged_packets)
    segment = inspect_file(FileJob(str(path), FULL_VIDEO, 12)).segments[0]
    assert (segment.fault, segment.damage) == (fault, damage)


@pytest.mark.parametrize("extension", FORMATS)
def test_checked_frames_equal_those_of_training(tmp_path, extension):
    path = str(write(tmp_path / f"a.{extension}", extension, 0))
    for start, end in ((None, None), (0.3, 1.4), (1.0, 1.0)):
        frames = decode_checked(DecodeRequest(path, start, end, 4, 24))
        np.testing.assert_array_equal(frames, read_frames(path, 24, 4, start=start, end=end))
    assert "beyond the end" in decode_checked(DecodeRequest(path, 9.0, None, 4, 24))


def test_checked_frames_of_a_damaged_file_equal_those_of_training(tmp_path):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, 37, 37)
    request = DecodeRequest(str(path), None, None, 12, 24)
    np.testing.assert_array_equal(decode_checked(request), read_frames(str(path), 24, 12))
    spoil_packets(path, 10, 10)
    assert decode_checked(request).startswith("1 of the 8 frames")


def test_frames_that_depend_on_a_damaged_one_are_damaged(tmp_path):
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    path = write_video(tmp_path / "a.mkv", numbered(60), options=options)
    spoil_packets(path, 25, 25)
    segments = ((0.0, 1.9), (2.8, 3.9), (4.0, 5.9), (7.0, 8.0))
    before, after, next_keyframe, beyond_end = inspect_file(
        FileJob(str(path), segments, 12)
    ).segments
    assert after.fault.startswith("2 of the 2 frames to take are damaged")
    assert before.fault == next_keyframe.fault == "15 of its 60 frames are damaged"
    assert "beyond the end" in beyond_end.fault


def test_frames_that_a_decoder_conceals_errors_in_are_damaged(tmp_path):
    original = write(tmp_path / "a.mp4", "mp4", 3)
    content, packets, segments = original.read_bytes(), packets_of(original), []
    for seed in range(10):
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(flip(content, seed, packets[8:9]))
        segments += inspect_file(FileJob(str(path), ((1.0, 1.9),), 12)).segments
    # The changed bytes may be valid; a frame whose errors are detected is never taken.
    assert sum(s.fault.startswith("1 of the 1 frames to take") for s in segments) >= 5
    assert not any(s.damage for s in segments)


def clip(name, captions, split="test", path=""):
    return Clip(name, path, tuple(captions), split)


def report(clips, words=8, dataset="folder", uncaptioned=None, unlisted=()):
    annotations = Annotations(clips, uncaptioned or {}, list(unlisted))
    inspected = doctor.inspect_clips(clips, 4, progress=False)
    return doctor.report(dataset, annotations, inspected, words, progress=False)


def warnings_of(result, kind):
    return [w for w in result["warnings"] if w["kind"] == kind]


def test_captions_are_checked_without_videos():
    clips = [
        clip("a", ["a red ball", "  "]),
        clip("b", ["a red ball"]),
        clip("c", ["one two three four five six seven"]),  # 7 tokens, start and end
        clip("d", ["a red ball"], "train"),
    ]
    result = report(clips, uncaptioned={"test": ["e", "f"]}, unlisted=["g"])
    test = result["splits"]["test"]
    assert (test["videos"], test["captions"], test["missing"], test["broken"]) == (3, 4, 3, 0)
    assert test["empty_captions"] == 1 and test["repeated_captions"] == 1
    assert test["cut_captions"] == {"count": 1, "most": 1, "tokens": 1}
    assert test["uncaptioned"] == 2 and result["unlisted"] == 1 and not result["ok"]
    assert [entry["video_id"] for entry in result["bad"]] == ["a", "b", "c", "d"]
    assert warnings_of(result, "repeated_captions")[0]["video_ids"] == ["a", "b"]
    assert warnings_of(result, "empty_captions")[0]["video_ids"] == ["a"]
    assert warnings_of(result, "unlisted")[0]["video_ids"] == ["g"]
    text = table(result)
    assert "4 clips are missing or broken" in text and "'a': no such file" in text
    assert len({len(line) for line in text.splitlines()[:10]}) == 1  # aligned


def test_unusual_clips_give_warnings_and_are_not_bad(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    original = str(write_video(tmp_path / "original.mp4", noise))
    copy, other = tmp_path / "copy.mp4", str(write_video(tmp_path / "other.mp4", noise[::-1]))
    copy.write_bytes((tmp_path / "original.mp4").read_bytes())
    as_mkv = str(write_video(tmp_path / "as_mkv.mkv", noise))  # other bytes, same frames
    black = str(write_video(tmp_path / "black.mp4", [np.zeros((48, 64, 3), np.uint8)] * 20))
    short = str(write_video(tmp_path / "short.mp4", noise[5:12]))
    times = [1000 * 70 * i for i in range(20)]
    long = str(write_video(tmp_path / "long.mkv", noise[2:] + 1, milliseconds=times))
    paths = {"original": original, "black0": black, "copy": str(copy), "as_mkv": as_mkv}
    paths["other"] = other
    paths |= {"black1": black, "short": short, "long": long}
    train = ("original", "black0")
    clips = [clip(n, [n], "train" if n in train else "test", p) for n, p in paths.items()]
    result = report(clips)
    assert result["ok"] and result["bad"] == []
    assert {(w["kind"], *w["video_ids"]) for w in result["warnings"]} == {
        ("duplicate", "copy"), ("duplicate", "as_mkv"), ("duplicate", "black1"),
        ("short", "short"), ("long", "long"), ("black", "black0"), ("black", "black1"),
    }  # fmt: skip
    assert "same file as 'original'" in warnings_of(result, "duplicate")[0]["reason"]
    assert result["splits"]["test"]["duplicates"] == 3
    assert result["splits"]["test"]["black_frames"] == 2


def test_counts_are_compared_with_the_published_ones():
    train = [clip(f"v{i}", [f"{j}" for j in range(20)], "train") for i in range(9000)]
    test = [clip(f"t{i}", [f"caption {i}"]) for i in range(999)]
    result = report([*train, *test], dataset="msrvtt")
    published_train = {"videos": 9000, "captions": 180_000}
    assert result["splits"]["train"]["expected"] == published_train
    assert result["splits"]["test"]["expected"]["videos"] == 1000
    assert [w["split"] for w in warnings_of(result, "counts")] == ["test"]
    assert "999 of 1,000" in table(result)
    held_out = [clip(c.clip_id, c.captions, "val") for c in train[:1000]]
    result = report([*train[1000:], *held_out, *test, clip("t", ["x"])], dataset="msrvtt")
    assert not warnings_of(result, "counts")


def test_counts_are_compared_with_the_closest_protocol():
    test = [clip(f"t{i}", [f"caption {i}"]) for i in range(1000)]
    train = [clip(f"v{i}", [f"{j}" for j in range(20)], "train") for i in range(7009)]
    splits = report([*train, *test], dataset="msrvtt")["splits"]
    assert splits["train"]["expected"] == {"videos": 7010, "captions": 140_200}


def test_excluded_ids_are_written_and_read(tmp_path, caplog):
    names = ["plain", "new\nline", '"quoted', " space ", "日本", "tab\t", '"both"']
    exclude.write_ids(tmp_path / "ids.txt", names)
    assert exclude.read_ids(str(tmp_path / "ids.txt")) == set(names)
    (tmp_path / "plain.txt").write_text('a b\n\n"half\nclip.mp4@1-2\n"x"\n')
    ids = exclude.read_ids(str(tmp_path / "plain.txt"))
    assert ids == {"a b", '"half', "clip.mp4@1-2", "x"}
    with caplog.at_level(logging.INFO):
        excluded = exclude.excluded_clips([clip("x", ["1"]), clip("y", ["2"])], ids)
    assert [c.clip_id for c in excluded] == ["x"]
    assert "excludes 1 clips: 1 test" in caplog.text and "3 ids match no clip" in caplog.text
    assert exclude.read_ids("") == frozenset()
    segment = Clip("v@0-2", "", ("1",), "train", 0.0, 2.0)
    ids = frozenset({"v"})  # a video's id excludes all its segments
    assert exclude.excluded_clips([segment, clip("x", ["1"])], ids) == [segment]
    inspected = doctor.inspect_clips([segment], 4, progress=False)
    annotations = Annotations([segment], {}, [])
    result = doctor.report("folder", annotations, inspected, 24, excluded=ids, progress=False)
    assert result["ok"] and result["bad"][0]["excluded"]
    with pytest.raises(UsageError, match=r"data\.exclude .*gone\.txt"):
        exclude.read_ids(str(tmp_path / "gone.txt"))
