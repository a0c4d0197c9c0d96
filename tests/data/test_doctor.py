"""Broken and odd clips and captions are found, each with its reason, and no sound one is."""

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
from hvp_jax.cli.doctor import table
from tests.helpers.clips import numbered, spoil_packets, write_video
from tests.helpers.damaged import KINDS, examine_or_misbehave, flip, make_folder, packets_of, write

WHOLE = ((None, None),)


def test_200_damaged_among_50_good(tmp_path, run_cli):
    good, damaged = make_folder(tmp_path / "set")
    assert (len(good), len(damaged)) == (50, 200)
    reasons = {name: said for name, said in damaged.items() if said}
    command = (
        *("doctor", "--config=configs/folder.py", f"--config.data.root={tmp_path / 'set'}"),
        *(f"--workdir={tmp_path / 'found'}", "--json"),
    )
    status, out, err = run_cli(*command)
    assert status == 1 and "Traceback" not in err, err
    result = json.loads(out)
    found = {entry["video_id"]: entry["reason"] for entry in result["bad"]}
    assert found.keys() == reasons.keys()
    wrong = {name: found[name] for name in found if not re.search(reasons[name], found[name])}
    assert not wrong
    assert not {name for w in result["warnings"] for name in w["video_ids"]} & set(good)
    assert sum(split["missing"] for split in result["splits"].values()) == 3  # the dead links
    assert sum(split["broken"] for split in result["splits"].values()) == len(reasons) - 3
    assert sum(split["videos"] for split in result["splits"].values()) == 250
    written = json.loads((tmp_path / "found" / "doctor.json").read_text())
    assert written == result

    listed = tmp_path / "found" / "bad_ids.txt"
    assert exclude.read_ids(str(listed)) == reasons.keys()
    status, out, err = run_cli(*command, f"--config.data.exclude={listed}")
    assert status == 0, err
    again = json.loads(out)
    assert again["ok"] and sum(s["excluded"] for s in again["splits"].values()) == len(reasons)
    assert exclude.read_ids(str(listed)) == reasons.keys()  # not emptied by the second time

    shard_folder = tmp_path / "shards"
    command = ("prepare", *command[1:3], "--config.model.variant=tiny", "--config.data.workers=2")
    command += (f"--config.data.shards={shard_folder}",)
    status, out, err = run_cli(*command)
    assert status == 1 and "Traceback" not in err, err
    assert f"\nerror: {len(reasons)} of 250 clips are missing or broken: " in err
    assert not shard_folder.exists()
    status, out, err = run_cli(*command, f"--config.data.exclude={listed}")
    assert status == 0, err
    written = [open_shards(str(shard_folder), split).clip_ids for split in ("train", "val", "test")]
    assert set().union(*written) == {*good, *damaged} - reasons.keys()
    assert sum(map(len, written)) == 250 - len(reasons)


def test_a_file_that_hangs_or_crashes_the_decoder_costs_itself_alone(tmp_path):
    path = str(write_video(tmp_path / "good.mp4", numbered(12)))
    names = ["hang", "crash", "hoard", "crash", "hang"]
    clips = [Clip(str(i), str(tmp_path / name), ("x",), "train") for i, name in enumerate(names)]
    clips += [Clip(f"good{i}", path, ("x",), "train", i / 10, 1.0) for i in range(5)]
    found = doctor.inspect_clips(
        clips, 4, 2, seconds=3, memory=1 << 29, progress=False, work=examine_or_misbehave
    )
    faults = [patient.found.fault for patient in found]
    assert faults[0] == faults[4] == "takes the decoder more than 3 s"
    assert faults[1] == faults[3] == "crashes the decoder (SIGSEGV)"
    assert faults[2] == "needs more than 0.5 GiB of memory"
    assert faults[5:] == [""] * 5


def broken_work(job):
    raise KeyError("ours")


def test_a_bug_of_ours_is_no_fault_of_a_file(tmp_path):
    clip = Clip("a", str(tmp_path / "a"), ("x",), "train")
    with pytest.raises(RuntimeError, match="KeyError.*ours"):
        doctor.inspect_clips([clip], 4, progress=False, work=broken_work)


@pytest.mark.parametrize(
    "spoilt, fault, damage",
    [
        ((10, 10), "1 of the 8 frames to take are damaged", ""),
        ((0, 0), "1 of the 8 frames to take are damaged", ""),
        ((37, 37), "", "1 of its 40 frames are damaged"),
        ((36, 39), "4 of its 40 frames are damaged", ""),
    ],
    ids=["wanted", "first", "behind", "many"],
)
def test_damage_is_bad_where_frames_are_taken(tmp_path, spoilt, fault, damage):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, *spoilt)
    found = inspect_file(FileJob(str(path), WHOLE, 12)).segments[0]
    assert (found.fault, found.damage) == (fault, damage)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_is_what_training_reads(tmp_path, kind):
    path = str(write(tmp_path / f"a.{kind}", kind, 0))
    for start, end in ((None, None), (0.3, 1.4), (1.0, 1.0)):
        expected = read_frames(path, 24, 4, start=start, end=end)
        np.testing.assert_array_equal(
            decode_checked(DecodeRequest(path, start, end, 4, 24)), expected
        )
    assert "beyond the end" in decode_checked(DecodeRequest(path, 9.0, None, 4, 24))


def test_what_is_taken_of_a_damaged_file_is_what_training_reads(tmp_path):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, 37, 37)
    expected = read_frames(str(path), 24, 12)
    np.testing.assert_array_equal(
        decode_checked(DecodeRequest(str(path), None, None, 12, 24)), expected
    )
    spoil_packets(path, 10, 10)
    assert decode_checked(DecodeRequest(str(path), None, None, 12, 24)).startswith(
        "1 of the 8 frames"
    )


def test_frames_that_lean_on_a_damaged_one_are_damaged(tmp_path):
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    path = write_video(tmp_path / "a.mkv", numbered(60), options=options)
    spoil_packets(path, 25, 25)
    stretches = ((0.0, 1.9), (2.8, 3.9), (4.0, 5.9), (7.0, 8.0))
    before, behind, next_key, late = inspect_file(FileJob(str(path), stretches, 12)).segments
    assert behind.fault.startswith("2 of the 2 frames to take are damaged")
    assert before.fault == next_key.fault == "15 of its 60 frames are damaged"
    assert "beyond the end" in late.fault


def test_frames_that_a_decoder_patches_up_are_damaged(tmp_path):
    whole = write(tmp_path / "a.mp4", "mp4", 3)
    content, packets, found = whole.read_bytes(), packets_of(whole), []
    for seed in range(10):
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(flip(content, seed, packets[8:9]))
        found += inspect_file(FileJob(str(path), ((1.0, 1.9),), 12)).segments
    # Other bytes may still be a picture; what is noticed is never taken for a frame.
    assert sum(s.fault.startswith("1 of the 1 frames to take") for s in found) >= 5
    assert not any(s.damage for s in found)


def clip(name, captions, split="test", path=""):
    return Clip(name, path, tuple(captions), split)


def findings(clips, words=8, dataset="folder", uncaptioned=None, unlisted=()):
    told = Annotations(clips, uncaptioned or {}, list(unlisted))
    patients = doctor.inspect_clips(clips, 4, progress=False)
    return doctor.report(dataset, told, patients, words, progress=False)


def warned(result, kind):
    return [w for w in result["warnings"] if w["kind"] == kind]


def test_captions_are_looked_at_without_videos():
    clips = [
        clip("a", ["a red ball", "  "]),
        clip("b", ["a red ball"]),
        clip("c", ["one two three four five six seven"]),  # 7 tokens and 2 marks
        clip("d", ["a red ball"], "train"),
    ]
    result = findings(clips, uncaptioned={"test": ["e", "f"]}, unlisted=["g"])
    test = result["splits"]["test"]
    assert (test["videos"], test["captions"], test["missing"], test["broken"]) == (3, 4, 3, 0)
    assert test["empty_captions"] == 1 and test["repeated_captions"] == 1
    assert test["cut_captions"] == {"count": 1, "most": 1, "tokens": 1}
    assert test["uncaptioned"] == 2 and result["unlisted"] == 1 and not result["ok"]
    assert [entry["video_id"] for entry in result["bad"]] == ["a", "b", "c", "d"]
    assert warned(result, "repeated_captions")[0]["video_ids"] == ["a", "b"]
    assert warned(result, "empty_captions")[0]["video_ids"] == ["a"]
    assert warned(result, "unlisted")[0]["video_ids"] == ["g"]
    text = table(result)
    assert "4 clips are missing or broken" in text and "'a': no such file" in text
    assert len({len(line) for line in text.splitlines()[:10]}) == 1  # aligned


def test_odd_clips_are_told_and_are_not_bad(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    once = str(write_video(tmp_path / "once.mp4", noise))
    copy, other = tmp_path / "copy.mp4", str(write_video(tmp_path / "other.mp4", noise[::-1]))
    copy.write_bytes((tmp_path / "once.mp4").read_bytes())
    again = str(write_video(tmp_path / "again.mkv", noise))  # other bytes, the same pictures
    black = str(write_video(tmp_path / "black.mp4", [np.zeros((48, 64, 3), np.uint8)] * 20))
    short = str(write_video(tmp_path / "short.mp4", noise[5:12]))
    long = [1000 * 70 * i for i in range(20)]
    long = str(write_video(tmp_path / "long.mkv", noise[2:] + 1, milliseconds=long))
    paths = {"once": once, "black0": black, "copy": str(copy), "again": again, "other": other}
    paths |= {"black1": black, "short": short, "long": long}
    train = ("once", "black0")
    clips = [clip(n, [n], "train" if n in train else "test", p) for n, p in paths.items()]
    result = findings(clips)
    assert result["ok"] and result["bad"] == []
    told = {(w["kind"], *w["video_ids"]) for w in result["warnings"]}
    assert told == {
        ("duplicate", "copy"), ("duplicate", "again"), ("duplicate", "black1"), ("short", "short"),
        ("long", "long"), ("black", "black0"), ("black", "black1"),
    }  # fmt: skip
    assert "same file as 'once'" in warned(result, "duplicate")[0]["reason"]
    assert result["splits"]["test"]["duplicates"] == 3
    assert result["splits"]["test"]["black_frames"] == 2


def test_counts_stand_beside_the_known_ones():
    train = [clip(f"v{i}", [f"{j}" for j in range(20)], "train") for i in range(9000)]
    test = [clip(f"t{i}", [f"caption {i}"]) for i in range(999)]
    result = findings([*train, *test], dataset="msrvtt")
    train_known = {"videos": 9000, "captions": 180_000}
    assert result["splits"]["train"]["expected"] == train_known
    assert result["splits"]["test"]["expected"]["videos"] == 1000
    assert [w["split"] for w in warned(result, "counts")] == ["test"]
    assert "999 of 1,000" in table(result)
    held_out = [clip(c.clip_id, c.captions, "val") for c in train[:1000]]
    result = findings([*train[1000:], *held_out, *test, clip("t", ["x"])], dataset="msrvtt")
    assert not warned(result, "counts")


def test_counts_are_those_of_the_nearest_way_to_split():
    test = [clip(f"t{i}", [f"caption {i}"]) for i in range(1000)]
    train = [clip(f"v{i}", [f"{j}" for j in range(20)], "train") for i in range(7009)]
    known = findings([*train, *test], dataset="msrvtt")["splits"]["train"]["expected"]
    assert known == {"videos": 7010, "captions": 140_200}


def test_exclude_reads_what_was_written(tmp_path, caplog):
    names = ["plain", "new\nline", '"quoted', " space ", "日本", "tab\t", '"both"']
    exclude.write_ids(tmp_path / "ids.txt", names)
    assert exclude.read_ids(str(tmp_path / "ids.txt")) == set(names)
    (tmp_path / "plain.txt").write_text('a b\n\n"half\nclip.mp4@1-2\n"x"\n')
    ids = exclude.read_ids(str(tmp_path / "plain.txt"))
    assert ids == {"a b", '"half', "clip.mp4@1-2", "x"}
    with caplog.at_level(logging.INFO):
        out = exclude.excluded_clips([clip("x", ["1"]), clip("y", ["2"])], ids)
    assert [c.clip_id for c in out] == ["x"]
    assert "leaves out 1 clips: 1 test" in caplog.text and "3 ids are of no clip" in caplog.text
    assert exclude.read_ids("") == frozenset()
    stretch = Clip("v@0-2", "", ("1",), "train", 0.0, 2.0)
    ids = frozenset({"v"})  # of the video: every stretch of it goes
    assert exclude.excluded_clips([stretch, clip("x", ["1"])], ids) == [stretch]
    patients = doctor.inspect_clips([stretch], 4, progress=False)
    result = doctor.report("folder", Annotations([stretch], {}, []), patients, 24, ids, False)
    assert result["ok"] and result["bad"][0]["excluded"]
    with pytest.raises(UsageError, match=r"data\.exclude .*gone\.txt"):
        exclude.read_ids(str(tmp_path / "gone.txt"))
