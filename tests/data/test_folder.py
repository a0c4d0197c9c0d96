"""The `folder` format: what is read, and a one-line error for everything that can be wrong."""

import logging
import re
from pathlib import Path

import pytest

from data import inputs
from data.annotations import common, files, folder
from data.errors import DataError, UsageError
from data.records import Clip, DatasetLocation
from data.splits import clips_of_split


def write_folder(root: Path, table: str | bytes, *files: str) -> str:
    """Writes captions.csv and empty files in videos/; returns the root."""
    for file in files or ("a.mp4", "b.webm", "c.avi"):
        path = root / "videos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "captions.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return str(root)


def read(root: str) -> list[Clip]:
    return inputs.read_dataset(DatasetLocation("folder", root=root))


def summaries(root: str) -> list[tuple]:
    return [(c.clip_id, Path(c.path).name, c.captions, c.split) for c in read(root)]


def test_captions_of_a_video_are_collected_in_order_of_appearance(tmp_path):
    table = "video_id,caption,split\nb,two,Train\na,one,TEST\nb,zwei,train\nc,three,dev\n"
    assert summaries(write_folder(tmp_path, table)) == [
        ("b", "b.webm", ("two", "zwei"), "train"),
        ("a", "a.mp4", ("one",), "test"),
        ("c", "c.avi", ("three",), "val"),
    ]


@pytest.mark.parametrize(
    "table",
    [
        "split,more,caption,video_id\nval,9,one,a\n",
        "\ufeffvideo_id,caption,split\r\na,one,validation\r\n",
        '"video_id", caption ,split\n\na,"one",VAL\n\n',
        "video_id,caption,split,start,end\na.mp4,one,val,,\n",
        "video_id,caption,split,start\na.mp4,one,val,0\n",
    ],
)
def test_column_order_quotes_and_line_endings_do_not_matter(tmp_path, table):
    (clip,) = read(write_folder(tmp_path, table))
    assert clip.captions == ("one",) and clip.split == "val"
    assert Path(clip.path) == tmp_path / "videos" / "a.mp4"
    assert (clip.start, clip.end) == (None, None)


def test_quoted_captions(tmp_path):
    table = 'video_id,caption\na,"a cat, ""Tom"", and\na mouse"\na,caffè – 猫\n'
    (clip,) = read(write_folder(tmp_path, table))
    assert clip.captions == ('a cat, "Tom", and\na mouse', "caffè – 猫")


def test_ids_with_dots_folders_and_accents(tmp_path):
    files = ("film 1/x.y.mp4", "film 1/x.mp4", "v.1.MKV", "cafe\u0301.mp4", "notes.txt", "v.1.txt")
    table = "video_id,caption\nfilm 1/x.y,1\nfilm 1/x,2\nv.1,3\ncaf\u00e9,4\nfilm 1/x.mp4,5\n"
    clips = read(write_folder(tmp_path, table, *files))
    names = [str(Path(clip.path).relative_to(tmp_path / "videos")) for clip in clips]
    assert names == [files[0], files[1], files[2], files[3]]
    assert clips[1].captions == ("2", "5")


def test_segments_of_a_video_are_clips(tmp_path):
    table = (
        "video_id,caption,split,start,end\n"
        "a,1,train,0,7.5\na,2,train,7.5,\na,3,train,,\na,4,train,,7.50\na,5,train,1234567.25,1e7\n"
    )
    clips = read(write_folder(tmp_path, table))
    assert [(c.clip_id, c.captions, c.start, c.end) for c in clips] == [
        ("a@0-7.5", ("1", "4"), 0.0, 7.5),
        ("a@7.5-", ("2",), 7.5, None),
        ("a", ("3",), None, None),
        ("a@1234567.25-10000000", ("5",), 1234567.25, 1e7),
    ]


def test_without_a_split_column_the_id_decides(tmp_path):
    ids = [f"video{i}" for i in range(1000)]
    table = "video_id,caption\n" + "".join(f"{i},x\n" for i in ids)
    clips = read(write_folder(tmp_path, table, *(f"{i}.mp4" for i in ids)))
    sizes = {s: len(clips_of_split(clips, s)) for s in ("train", "val", "test")}
    assert sizes == {"train": 805, "val": 88, "test": 107}
    splits = {clip.clip_id: clip.split for clip in clips}
    # These never change, whatever the machine or version.
    assert [splits[f"video{i}"] for i in (0, 2, 7, 19)] == ["train", "test", "val", "test"]
    fewer = "video_id,caption\n" + "".join(f"{i},x\n" for i in ids[::3])
    (tmp_path / "captions.csv").write_text(fewer)
    assert all(clip.split == splits[clip.clip_id] for clip in read(str(tmp_path)))


def test_videos_without_captions_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(write_folder(tmp_path, "video_id,caption\nb,x\n"))
    assert len(caplog.records) == 1 and "2 videos have no captions" in caplog.text


HEADER = b"video_id,caption\n"
BAD_TABLES = {
    "empty": (b"", "captions.csv: empty"),
    "no rows": (HEADER, "no captions"),
    "no caption column": (b"video_id,text\na,x\n", "no column 'caption'; .* video_id, text"),
    "no id column": (b"id,caption\na,x\n", "no column 'video_id'; .* id, caption"),
    "duplicate column": (b"video_id,caption,caption\na,x,y\n", "more than one column 'caption'"),
    "empty caption": (HEADER + b"a,x\nb,  \n", "row 3: caption is empty"),
    "missing caption": (HEADER + b"a,x\nb,NaN\n", "row 3: caption of 'b' is 'NaN', as programs"),
    "end before start": (b"video_id,caption,start,end\na,x,3,2\n", "row 2: start 3 is not before"),
    "empty id": (HEADER + b"a,x\n,y\n", "row 3: video_id is empty"),
    "missing files": (
        HEADER + b"q,1\na,2\nr,3\nq,4\ns,5\nt,6\n",
        "4 of its videos are not in .*: q, r, s, ...; ",
    ),
    "split": (b"video_id,caption,split\na,x,training\n", "row 2: split 'training'"),
    "two splits": (b"video_id,caption,split\na,x,val\na,y,test\n", "row 3: video 'a' is in"),
    "two splits with and without extension": (
        b"video_id,caption,split,start\na,x,val,\na.mp4,y,test,3\n",
        "row 3: video 'a' is in test and in val",
    ),
    "start": (b"video_id,caption,start\na,x,1:30\n", "row 2: start '1:30' is not a number"),
    "negative": (b"video_id,caption,start\na,x,-1\n", "row 2: start -1 is not a time"),
    "infinite": (b"video_id,caption,end\na,x,nan\n", "row 2: end nan is not a time"),
    "empty segment": (
        b"video_id,caption,start,end\na,x,3,3\n",
        "row 2: start 3 is not before end 3",
    ),
    "end at 0": (b"video_id,caption,end\na,x,0\n", "row 2: start 0 is not before end 0"),
    "unquoted comma": (HEADER + b"a,x\na,one, two\n", "row 3 has 3 fields, the header 2"),
    "unclosed quote": (HEADER + b'a,"x\nb,y\n', "check the quotes"),
    "latin 1": (HEADER + b"a,x\na,caf\xe9\n", "line 3 is not UTF-8"),
    "utf 16": ("video_id,caption\na,x\n".encode("utf-16"), "not UTF-8"),
    "null": (HEADER + b"a,x\0\n", "line 2 contains a null byte"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_give_a_one_line_error(tmp_path, name):
    table, expected = BAD_TABLES[name]
    with pytest.raises(DataError, match=expected) as caught:
        read(write_folder(tmp_path, table))
    assert str(tmp_path / "captions.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_with_the_same_id(tmp_path):
    root = write_folder(tmp_path, HEADER + b"b,x\na,y\n", "a.mp4", "a.webm", "b.mp4")
    with pytest.raises(DataError, match=r"row 3: .*'a' matches both .*a\.mp4 and .*a\.webm"):
        read(root)
    exact = write_folder(tmp_path, HEADER + b"a.webm,x\na.mp4,y\n")
    assert [Path(clip.path).name for clip in read(exact)] == ["a.webm", "a.mp4"]


def test_missing_files_and_directories(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for root, message in ((tmp_path / "none", "does not exist"), (file, "is not a directory")):
        with pytest.raises(UsageError, match=f"{re.escape(str(root))}.*{message}"):
            read(str(root))
    with pytest.raises(DataError, match="captions.csv: no such file"):
        read(str(tmp_path))
    (tmp_path / "captions.csv").write_bytes(HEADER + b"a,x\n")
    with pytest.raises(DataError, match="videos: no such directory"):
        read(str(tmp_path))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / ".DS_Store").touch()
    with pytest.raises(DataError, match="videos: contains no files"):
        read(str(tmp_path))


def test_clips_are_read_without_video_files(tmp_path):
    (tmp_path / "captions.csv").write_bytes(HEADER + b"a,x\nb.mp4,y\n  \na.mp4,z\n")
    clips = inputs.read_dataset(DatasetLocation("folder", root=str(tmp_path)), splits=())
    assert [(c.clip_id, c.path, c.captions) for c in clips] == [
        ("a", "", ("x", "z")),
        ("b.mp4", "", ("y",)),
    ]


@pytest.mark.parametrize(
    ("video_id", "file"),
    [
        ("v0.mp4", "v0.MP4"),
        ("v0.mp4", "V0.mp4"),
        ("v0", "V0.Mp4"),
        ("v0.mp4", "v0.mkv"),
        ("v0.mp4", "v0.mp4 "),
        ("v0", "v0 .mp4"),
        ("v0.mp4", "sub/v0.mp4"),
        ("v0", "v0.jpeg"),
        ("Caf\u00e9", "cafe\u0301.mp4"),
    ],
)
def test_a_missing_file_that_is_spelled_otherwise_is_named(tmp_path, video_id, file):
    root = write_folder(tmp_path, f"video_id,caption\na,1\n{video_id},2\n", "a.mp4", file)
    with pytest.raises(DataError) as caught:
        read(root)
    assert f"{video_id} (there is {file!r}); add the files" in str(caught.value)


def test_a_similar_name_is_no_hint(tmp_path):
    root = write_folder(tmp_path, HEADER + b"a.b,1\nb.mp4,2\n", "a.mp4", "b.mp4")
    with pytest.raises(DataError, match=r": a\.b; add"):
        read(root)


def test_hidden_files_are_skipped(tmp_path):
    root = write_folder(
        tmp_path, HEADER + b"a,x\n", "a.mp4", ".Trash-1000/files/a.mp4", "film/.cache/a.mp4"
    )
    assert [Path(path).name for path in common.walk(root)] == ["captions.csv", "a.mp4"]


def test_blank_rows_of_a_table_are_skipped(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\na,x\n   \n,\nb,y\n\n")
    assert files.read_table(str(tmp_path / "t.csv"), "id") == [["a"], ["b"]]


def test_symlinked_folders_are_followed_without_loops(tmp_path, caplog):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.mp4").touch()
    root = write_folder(tmp_path / "root", HEADER + b"film/x,1\na,2\n", "a.mp4")
    (tmp_path / "root" / "videos" / "film").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "root" / "videos")
    assert [clip.clip_id for clip in read(root)] == ["film/x", "a"]
    assert not caplog.records  # no file was found twice


def test_data_set_names(tmp_path):
    root = write_folder(tmp_path, HEADER + b"a,x\n")
    for name in ("folder", "shapes"):
        location = DatasetLocation(name, root=root)
        assert inputs.read_dataset(location) == folder.read(location).clips
    with pytest.raises(UsageError, match="'imagenet' is unknown; data sets are folder, shapes"):
        inputs.read_dataset(DatasetLocation("imagenet", root=root))
    with pytest.raises(UsageError, match="data.root is empty"):
        inputs.read_dataset(DatasetLocation("folder"))


def test_an_empty_split_is_an_error(tmp_path):
    table = "video_id,caption,split\na,1,train\nb,2,train\nc,3,val\n"
    clips = read(write_folder(tmp_path, table))
    assert [clip.clip_id for clip in clips_of_split(clips, "train")] == ["a", "b"]
    with pytest.raises(DataError, match=r"'test' .* train \(2 clips\), val \(1 clips\)"):
        clips_of_split(clips, "test")
