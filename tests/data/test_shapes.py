"""The built-in clips: what is held out, what captions say, and the video files."""

import csv
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from data import inputs, splits
from data.errors import UsageError
from data.records import DatasetLocation
from data.synthetic import drawing, shapes
from data.video.decode import read_frames

COUNTS = {"test": 200, "val": 50, "train": 1200}


@pytest.fixture(scope="module")
def scenes():
    return shapes._scenes(0, COUNTS)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "shapes"
    shapes.make_dataset(str(root), seed=3, train=6, val=2, test=4)
    return root


def table(root: Path) -> list[dict[str, str]]:
    with open(root / "captions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_combinations_are_held_out_but_not_their_attributes(scenes):
    assert Counter(split for split, _ in scenes) == COUNTS
    fours = {s: [scene[:4] for split, scene in scenes if split == s] for s in COUNTS}
    assert shapes._scenes(1, COUNTS) != scenes
    assert len(set(fours["test"])) == 200  # no two clips of the gallery have the same description
    assert not set(fours["test"]) & set(fours["train"])
    assert not set(fours["val"]) & (set(fours["train"]) | set(fours["test"]))
    parts = [drawing.COLOURS, drawing.SHAPES, shapes.PHRASES, drawing.RADII]
    parts += [drawing.TEXTURES, drawing.BACKDROPS]
    for i, values in enumerate(parts):
        assert {scene[i] for split, scene in scenes if split == "train"} == set(values)
        assert {scene[i] for split, scene in scenes if split == "test"} == set(values)


def test_captions_name_every_attribute(scenes):
    for i, (_, scene) in enumerate(scenes):
        for caption in shapes.captions(scene, 2, (0, i, 1)):
            words = caption.replace(",", "").split()
            assert {scene.colour, scene.shape, scene.backdrop} <= set(words)
            assert sum(word in words for word in shapes.WORDS[scene.size]) == 1
            assert sum(word in words for word in shapes.WORDS[scene.texture]) == 1
            motions = [
                motion
                for motion, phrases in shapes.PHRASES.items()
                if any(phrase in caption for phrase in sum(phrases, ()))
            ]
            assert motions == [scene.motion]
            assert len(words) <= 18  # within 24 tokens


def test_captions_of_a_clip_differ(scenes):
    pairs = [shapes.captions(scene, 2, (0, i, 1)) for i, (_, scene) in enumerate(scenes)]
    assert all(first != second for first, second in pairs)
    beginnings = Counter(first.split()[1] for first, _ in pairs)
    assert len(beginnings) > 8


def test_files_are_h264_and_small(small_set):
    rows = table(small_set)
    assert len(rows) == 2 * 6 + 2 + 4
    videos = sorted((small_set / "videos").iterdir())
    assert [path.stem for path in videos] == list(dict.fromkeys(row["video_id"] for row in rows))
    for path in videos:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height, stream.average_rate) == (96, 96, 4)
            assert 8 <= stream.frames / 4 <= 12
        assert path.stat().st_size < 100_000
        assert 8 <= len(read_frames(str(path), 96, 12)) <= 12


def test_they_are_read_as_a_folder_and_generated_once(tmp_path, monkeypatch):
    generated = []
    monkeypatch.setattr(shapes, "make_dataset", lambda root: generated.append(root) or small(root))

    def small(root, make=shapes_make):
        make(root, train=2, val=1, test=1)

    root = str(tmp_path / "deep" / "shapes")
    location = DatasetLocation("shapes", root=root)
    clips = inputs.read_dataset(location)
    assert Counter(clip.split for clip in clips) == {"train": 2, "val": 1, "test": 1}
    assert [len(clip.captions) for clip in splits.clips_of_split(clips, "train")] == [2, 2]
    assert inputs.read_dataset(location) == clips
    assert generated == [root]


shapes_make = shapes.make_dataset


def test_the_seed_decides_the_clips(small_set, tmp_path, monkeypatch):
    scenes = shapes._scenes(3, {"test": 4, "val": 2, "train": 6})
    monkeypatch.setattr(shapes, "_scenes", lambda seed, counts: scenes)
    for seed, same in ((3, True), (4, False)):
        root = tmp_path / str(seed)
        shapes.make_dataset(str(root), seed=seed, train=6, val=2, test=4)
        assert (table(root) == table(small_set)) is same
        for name in ("clip0000.mp4", "clip0011.mp4"):
            first, second = (
                read_frames(str(r / "videos" / name), 96, 12) for r in (root, small_set)
            )
            assert np.array_equal(first, second) is same


def test_a_failure_leaves_no_partial_files(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "captions", fail)
    root = tmp_path / "shapes"
    with pytest.raises(KeyboardInterrupt):
        shapes.make_dataset(str(root), train=2, val=1, test=1)
    assert os.listdir(tmp_path) == []


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not empty"):
        shapes.make_dataset(str(tmp_path))
    with pytest.raises(UsageError, match="is not empty"):
        shapes.make_dataset(str(tmp_path / "thesis.txt"))
    assert os.listdir(tmp_path) == ["thesis.txt"]


def frames_of(motion: str, **changes: str) -> np.ndarray:
    """Frames [n, 96, 96, 3], one per second, as the model sees them."""
    scene = drawing.Scene("white", "circle", motion, "small", "plain", "grey")._replace(**changes)
    return np.stack(list(drawing.draw(scene, seed=(5,)))[:: drawing.RATE])


def centre(frame: np.ndarray) -> np.ndarray:
    """x, y of the centre of the white pixels."""
    return np.argwhere(frame.min(-1) > 215)[:, ::-1].mean(0)


@pytest.mark.parametrize("motion, step", [("right", (1, 0)), ("up", (0, -1))])
def test_directions_match_the_captions(motion, step):
    moves = np.diff([centre(frame) for frame in frames_of(motion)], axis=0)
    forward = moves @ step
    assert (forward > 4).mean() > 0.7  # except where it enters the frame again
    assert np.abs(moves @ np.array(step)[::-1]).max() < 2


def test_stationary_motions_are_visible_at_one_frame_per_second():
    areas = {m: (frames_of(m).min(-1) > 215).sum((1, 2)) for m in ("blink", "pulse", "round")}
    assert (areas["blink"] == 0).any() and (areas["blink"] > 300).any()
    assert areas["pulse"].max() > 2.5 * areas["pulse"].min() > 0
    assert areas["round"].max() < 1.3 * areas["round"].min()


def test_sizes_colours_and_textures_are_visible():
    areas = [(frames_of("round", size=size).min(-1) > 215).sum() for size in drawing.RADII]
    assert areas[1] > 3 * areas[0]
    dark = {t: (frames_of("blink", texture=t).max(-1) < 40).sum() for t in drawing.TEXTURES}
    assert dark["plain"] == 0 and min(dark[t] for t in ("striped", "dotted")) > 200
    edges = {
        t: np.diff((frames_of("round", texture=t).max(-1) < 40), axis=1).sum((1, 2)).mean()
        for t in drawing.TEXTURES
    }
    assert min(edges[t] for t in ("striped", "dotted")) > 80 > 0 == edges["plain"]
    blues = (frames_of("round", colour="blue").astype(int) @ (-1, 0, 1)).max()
    assert blues > 150
