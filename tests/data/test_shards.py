"""Shards: what `prepare` writes and refuses, and what is read back."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from configs.folder import get_config as folder_config
from data.batches import frame_sources
from data.errors import DataError, UsageError
from data.records import Clip
from data.shards import builder, prepare
from data.shards.reader import open_shards
from data.video.decode import read_frames
from hvp_jax.cli.verbs import prepare as prepare_command

SIZE, FRAMES = 16, 4


def write_video(path: Path, seed: int, frames: int) -> None:
    """A video of coarse noise, one frame per second; each seed gives other frames."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 48, 32
        for _ in range(frames):
            pixels = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((8, 8, 1)))
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Seven clips of 1 to 6 frames in two splits, one of them without a caption."""
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for i in range(7):
        path = folder / f"{i}.mp4"
        write_video(path, i, frames=1 + i % 6)
        captions = ("ein Bär", f"caption {i}")[: i % 3]
        made.append(Clip(f"clip{i}", str(path), captions, "test" if i % 3 == 1 else "train"))
    made[4] = dataclasses.replace(made[4], start=1.0, end=3.0)
    return made


def files(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file()]


def test_shards_contain_the_frames_and_captions_of_the_clips(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "SHARD_BYTES", 2 * FRAMES * SIZE * SIZE * 3)
    calls = []
    report = prepare.prepare(
        clips,
        str(tmp_path),
        SIZE,
        FRAMES,
        progress=lambda done, total: calls.append((done, total)),
        workers=1,
    )
    assert report["splits"] == {"train": 5, "test": 2} and report["written"]
    assert report["bytes"] == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert calls == [(i + 1, 7) for i in range(7)]
    assert capsys.readouterr().out == ""
    assert sum("-train." in name for name in files(tmp_path)) == 3  # two clips per file

    for split in ("train", "test"):
        expected = [clip for clip in clips if clip.split == split]
        shards = pickle.loads(pickle.dumps(open_shards(str(tmp_path), split)))
        assert shards.clip_ids == [clip.clip_id for clip in expected]
        assert (len(shards), shards.size, shards.max_frames) == (len(expected), SIZE, FRAMES)
        for i in reversed(range(len(expected))):
            clip, item = expected[i], shards[i]
            frames = read_frames(clip.path, SIZE, FRAMES, start=clip.start, end=clip.end)
            assert item["clip_id"] == clip.clip_id and item["captions"] == clip.captions
            assert item["frames"].dtype == np.uint8
            np.testing.assert_array_equal(item["frames"], frames)


def test_complete_shards_are_kept_and_other_shards_refused(clips, tmp_path, monkeypatch):
    prepare.prepare(clips, str(tmp_path), SIZE, FRAMES)

    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(builder, "examples", refuse)
    assert not prepare.prepare(clips, str(tmp_path), SIZE, FRAMES)["written"]
    other_caption = [dataclasses.replace(clips[0], captions=("new",)), *clips[1:]]
    other_file = [dataclasses.replace(clips[0], path=clips[1].path), *clips[1:]]
    for other, size, frames, word in (
        (clips, 24, FRAMES, "other size "),
        (clips, SIZE, 3, "other frames "),
        (clips[1:], SIZE, FRAMES, "other clips "),
        (other_caption, SIZE, FRAMES, "other clips "),
        (other_file, SIZE, FRAMES, "other clips "),
    ):
        with pytest.raises(UsageError, match=word) as raised:
            prepare.prepare(other, str(tmp_path), size, frames)
        assert str(tmp_path) in str(raised.value)


def test_clips_that_have_changed_are_refused(clips, tmp_path):
    """Shards stay valid without the video files, but not with different ones."""
    folder, directory = tmp_path / "videos", str(tmp_path / "shards")
    shutil.copytree(Path(clips[0].path).parent, folder)
    clips = [dataclasses.replace(c, path=str(folder / Path(c.path).name)) for c in clips]
    prepare.prepare(clips, directory, SIZE, FRAMES)
    train = [clip for clip in clips if clip.split == "train"]

    def refused(changed: list[Clip], *words: str) -> None:
        with pytest.raises(DataError) as raised:
            frame_sources.open_frames(changed, SIZE, FRAMES, directory)
        for word in (directory, "run `prepare` into another directory", *words):
            assert word in str(raised.value)

    other = dataclasses.replace
    refused([other(train[0], captions=("new",)), *train[1:]], "1 clips", "clip0 (other captions")
    refused([*train, other(clips[1], split="train")], "clip1 (was in the split test, is in train)")
    with open(clips[0].path, "ab") as file:
        file.write(b"more")
    size = Path(clips[0].path).stat().st_size
    refused(clips, f"clip0 ({clips[0].path} had {size - 4} bytes, has {size})")
    with pytest.raises(UsageError, match="other clips "):
        prepare.prepare(clips, directory, SIZE, FRAMES)
    assert len(open_shards(directory, "train", train[1:])) == 5

    shutil.rmtree(folder)
    gone = other(clips[5], path="", end=2.0)  # the end may be unknown without the file
    assert frame_sources.open_frames([gone], SIZE, FRAMES, directory)["clip5"].shape[1] == SIZE
    assert len(open_shards(directory, "train", clips)) == 5
    assert not prepare.prepare(clips, directory, SIZE, FRAMES)["written"]


def test_no_shards_are_left_if_a_clip_is_broken(clips, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    broken = [*clips[:5], dataclasses.replace(clips[5], path=str(text)), clips[6]]
    directory = tmp_path / "shards"
    with pytest.raises(DataError, match=r"^1 of 7 clips .*: clip5 \(.*text\.mp4: a text"):
        prepare.prepare(broken, str(directory), SIZE, FRAMES)
    assert files(directory) == []
    with pytest.raises(UsageError, match="no finished shards"):
        open_shards(str(directory), "train")

    absent = dataclasses.replace(clips[0], path=str(tmp_path / "absent.mp4"))
    with pytest.raises(DataError, match=r"^1 of 1 .*: clip0 \(.*absent\.mp4: no such file"):
        prepare.prepare([absent], str(tmp_path / "none"), SIZE, FRAMES)
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="no clips"):
        prepare.prepare([], str(tmp_path / "none"), SIZE, FRAMES)
    with pytest.raises(UsageError, match=r"text\.mp4"):
        prepare.prepare(clips, str(text), SIZE, FRAMES)


def test_command_refuses_broken_clips_and_leaves_nothing(clips, tmp_path):
    root, config = tmp_path / "set", folder_config()
    shutil.copytree(Path(clips[0].path).parent, root / "videos")
    table = "".join(f"{i},text {i},train\n" for i in range(7))
    (root / "captions.csv").write_text("video_id,caption,split\n" + table)
    for i in (1, 3, 4, 5):
        (root / f"videos/{i}.mp4").write_text("not a video")
    config.model.variant = "tiny"
    config.data.root, config.data.shards = str(root), str(tmp_path / "shards")
    with pytest.raises(DataError, match=r"^4 of 7 clips .*: 1 \(.*, 3 \(.*, 4 \(.*, \.\.\.;"):
        prepare_command.run(config)
    assert not (tmp_path / "shards").exists()

    shutil.rmtree(root / "videos")
    shutil.copytree(Path(clips[0].path).parent, root / "videos")
    assert prepare_command.run(config).text.startswith("wrote 7 train clips in ")
    assert prepare_command.run(config).text.startswith("found 7 train clips in ")


def test_damaged_or_missing_shards_are_named_in_the_error(clips, tmp_path):
    directory = str(tmp_path)
    prepare.prepare(clips, directory, SIZE, FRAMES)
    with pytest.raises(UsageError, match="no split val, only train, test"):
        open_shards(directory, "val")
    with pytest.raises(UsageError, match="nowhere"):
        open_shards(str(tmp_path / "nowhere"), "train")

    (path,) = tmp_path.rglob("*-train.*")
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    with pytest.raises(DataError, match="clip0"):
        open_shards(directory, "train")[0]
    path.write_bytes(whole)
    (metadata,) = tmp_path.rglob("metadata.json")
    metadata.write_text(metadata.read_text().replace('"clip0"', '"moved"'))
    with pytest.raises(DataError, match="found clip clip0 instead of moved"):
        open_shards(directory, "train")[0]
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="train are missing or truncated"):
        open_shards(directory, "train")
    path.unlink()
    with pytest.raises(DataError, match="train are missing or truncated"):
        open_shards(directory, "train")
    assert len(open_shards(directory, "test")) == 2
