"""Which videos a collection has, with their versions and captions, and how long ones are cut."""

import os

import pytest

from data.errors import DataError, UsageError
from hvp_jax.search.building import collection, stretches
from hvp_jax.search.building.collection import captions_of, read_collection


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_all_videos_below_a_folder_are_sorted_and_hidden_files_are_not_among_them(tmp_path):
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/.no.mp4", ".no/x.mp4", "notes.txt", "é.webm")
    found = read_collection(tmp_path)
    assert [video.name for video in found.videos] == ["a/z.MKV", "b.mp4", "é.webm"]
    assert found.root == str(tmp_path) and not found.skipped
    assert all(video.path == os.path.join(tmp_path, video.name) for video in found.videos)


def test_a_version_changes_with_the_file(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    before = read_collection(tmp_path).videos
    (tmp_path / "a.mp4").write_bytes(b"longer")
    os.utime(tmp_path / "b.mp4", ns=(5, 5))
    after = read_collection(tmp_path).videos
    assert all(old.version != new.version for old, new in zip(before, after, strict=True))


def test_captions_are_those_of_the_table_and_of_the_text_beside_a_video(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/sub/b.mp4", "videos/c.mp4")
    table = 'video_id,caption,start\na,one,\nsub/b.mp4,"two,  three",1\na.mp4,four,\n'
    (tmp_path / "captions.csv").write_text(table)
    (tmp_path / "videos/a.txt").write_text("five\n\n six \n")
    (tmp_path / "list.txt").write_text("videos/a.mp4\nvideos/c.mp4\n")
    expected = {"a.mp4": ("four", "one", "five", "six"), "sub/b.mp4": ("two, three",), "c.mp4": ()}
    for place in (tmp_path, tmp_path / "videos"):
        found = read_collection(place)
        assert found.root == str(tmp_path / "videos")
        assert {video.name: captions_of(video) for video in found.videos} == expected
    listed = read_collection(tmp_path / "list.txt")
    assert [video.name for video in listed.videos] == ["videos/a.mp4", "videos/c.mp4"]
    assert captions_of(listed.videos[0]) == expected["a.mp4"]


def test_captions_that_cannot_be_read_are_left_out_with_a_warning(tmp_path, caplog):
    touch(tmp_path, "a.mp4")
    (tmp_path / "captions.csv").write_text("id,text\n1,2\n")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (video,) = read_collection(tmp_path).videos
    assert captions_of(video) == ()
    assert "no column 'video_id'" in caplog.text and "a.txt: line 1 is not UTF-8" in caplog.text


def test_a_name_that_is_not_utf8_is_skipped(tmp_path):
    touch(tmp_path, "a.mp4")
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    found = read_collection(tmp_path)
    assert len(found.videos) == 1 and list(found.skipped.values()) == [collection.NOT_UTF8]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("none", UsageError, "does not exist"),
        ("empty", DataError, "there is no video in it"),
        ("clip.mp4", UsageError, "is a video; give its folder"),
        ("list.txt", UsageError, "line 2: ../other.mp4 is not below"),
    ],
)
def test_what_is_no_collection_is_refused(tmp_path, place, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("clip.mp4\n../other.mp4\n")
    with pytest.raises(error, match=message):
        read_collection(tmp_path / place)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (75, [(None, None)]),
        (76, [(0, 60), (16, 76)]),
        (120, [(0, 60), (30, 90), (60, 120)]),
        (100.5, [(0, 60), (40.5, 100.5)]),
        (190, [(0, 60), (30, 90), (60, 120), (90, 150), (130, 190)]),
    ],
)
def test_stretches_overlap_by_about_half_and_end_with_the_video(duration, expected):
    found = stretches.cut("a.mp4", duration, 60)
    assert [segment[1:] for segment in found] == expected


def test_a_file_that_claims_an_absurd_length_is_refused():
    with pytest.raises(DataError, match="claims to be 1000 hours long"):
        stretches.cut("a.mp4", 3_600_000, 60)
