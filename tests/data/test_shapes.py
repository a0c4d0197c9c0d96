"""The built-in clips: what is held out, what captions say, and that the files are real."""

import csv
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from data import inputs, splits
from data.errors import UsageError
from data.synthetic import drawing, shapes
from data.video.decode import read_frames

COUNTS = {"test": 200, "val": 50, "train": 1200}


@pytest.fixture(scope="module")
def scenes():
    return shapes._scenes(0, COUNTS)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "shapes"
    shapes.make_dataset(str(root), seed=3, train=6, val=2, test=4)
    return root


def table(root: Path) -> list[dict[str, str]]:
    with open(root / "captions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_compositions_are_held_out_but_not_their_parts(scenes):
    assert Counter(split for split, _ in scenes) == COUNTS
    fours = {s: [scene[:4] for split, scene in scenes if split == s] for s in COUNTS}
    assert shapes._scenes(1, COUNTS) != scenes
    assert len(set(fours["test"])) == 200  # no two clips of the gallery are told alike
    assert not set(fours["test"]) & set(fours["train"])
    assert not set(fours["val"]) & (set(fours["train"]) | set(fours["test"]))
    parts = [drawing.COLOURS, drawing.SHAPES, shapes.PHRASES, drawing.RADII]
    parts += [drawing.TEXTURES, drawing.BACKDROPS]
    for place, values in enumerate(parts):
        assert {scene[place] for split, scene in scenes if split == "train"} == set(values)
        assert {scene[place] for split, scene in scenes if split == "test"} == set(values)


def test_captions_name_every_attribute(scenes):
    for i, (_, scene) in enumerate(scenes):
        for caption in shapes.captions(scene, 2, (0, i, 1)):
            words = caption.replace(",", "").split()
            assert {scene.colour, scene.shape, scene.backdrop} <= set(words)
            assert sum(word in words for word in shapes.WORDS[scene.size]) == 1
            assert sum(word in words for word in shapes.WORDS[scene.texture]) == 1
            told = [
                m for m, ways in shapes.PHRASES.items() if any(p in caption for p in sum(ways, ()))
            ]
            assert told == [scene.motion]
            assert len(words) <= 18  # within 24 tokens


def test_captions_of_a_clip_differ_and_vary(scenes):
    pairs = [shapes.captions(scene, 2, (0, i, 1)) for i, (_, scene) in enumerate(scenes)]
    assert all(first != second for first, second in pairs)
    beginnings = Counter(first.split()[1] for first, _ in pairs)
    assert len(beginnings) > 8


def test_files_are_h264_and_small(few):
    rows = table(few)
    assert len(rows) == 2 * 6 + 2 + 4
    videos = sorted((few / "videos").iterdir())
    assert [path.stem for path in videos] == list(dict.fromkeys(row["video_id"] for row in rows))
    for path in videos:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height, stream.average_rate) == (96, 96, 4)
            assert 8 <= stream.frames / 4 <= 12
        assert path.stat().st_size < 100_000
        assert 8 <= len(read_frames(str(path), 96, 12)) <= 12


def test_they_read_as_a_folder_and_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(shapes, "make_dataset", lambda root: made.append(root) or small(root))

    def small(root, make=shapes_make):
        make(root, train=2, val=1, test=1)

    root = str(tmp_path / "deep" / "shapes")
    clips = inputs.read_dataset("shapes", root, "", "")
    assert Counter(clip.split for clip in clips) == {"train": 2, "val": 1, "test": 1}
    assert [len(clip.captions) for clip in splits.clips_of_split(clips, "train")] == [2, 2]
    assert inputs.read_dataset("shapes", root, "", "") == clips
    assert made == [root]


shapes_make = shapes.make_dataset


def test_a_seed_gives_the_same_clips_and_another_others(few, tmp_path, monkeypatch):
    scenes = shapes._scenes(3, {"test": 4, "val": 2, "train": 6})
    monkeypatch.setattr(shapes, "_scenes", lambda seed, counts: scenes)
    for seed, same in ((3, True), (4, False)):
        root = tmp_path / str(seed)
        shapes.make_dataset(str(root), seed=seed, train=6, val=2, test=4)
        assert (table(root) == table(few)) is same
        for name in ("clip0000.mp4", "clip0011.mp4"):
            ours, theirs = (read_frames(str(r / "videos" / name), 96, 12) for r in (root, few))
            assert np.array_equal(ours, theirs) is same


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "captions", fail)
    root = tmp_path / "shapes"
    with pytest.raises(KeyboardInterrupt):
        shapes.make_dataset(str(root), train=2, val=1, test=1)
    assert os.listdir(tmp_path) == []


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds other things"):
        shapes.make_dataset(str(tmp_path))
    with pytest.raises(UsageError, match="holds other things"):
        shapes.make_dataset(str(tmp_path / "thesis.txt"))
    assert os.listdir(tmp_path) == ["thesis.txt"]


def still(motion: str, **changes) -> np.ndarray:
    """Frames [n, 96, 96, 3] of one second's step, as the model sees them."""
    scene = {"colour": "white", "shape": "circle", "size": "small", "texture": "plain"} | changes
    scene = {"backdrop": "grey"} | scene
    return np.stack(list(drawing.draw(motion=motion, seed=(5,), **scene))[:: drawing.RATE])


def middle(frame: np.ndarray) -> np.ndarray:
    """x, y of the centre of what is white."""
    return np.argwhere(frame.min(-1) > 215)[:, ::-1].mean(0)


@pytest.mark.parametrize("motion, step", [("right", (1, 0)), ("up", (0, -1))])
def test_directions_are_those_told(motion, step):
    moves = np.diff([middle(frame) for frame in still(motion)], axis=0)
    onward = moves @ step
    assert (onward > 4).mean() > 0.7  # but where it comes in anew
    assert np.abs(moves @ np.array(step)[::-1]).max() < 2


def test_motions_on_the_spot_are_seen_at_one_frame_a_second():
    areas = {m: (still(m).min(-1) > 215).sum((1, 2)) for m in ("blink", "pulse", "round")}
    assert (areas["blink"] == 0).any() and (areas["blink"] > 300).any()
    assert areas["pulse"].max() > 2.5 * areas["pulse"].min() > 0
    assert areas["round"].max() < 1.3 * areas["round"].min()


def test_sizes_colours_and_textures_are_seen():
    areas = [(still("round", size=size).min(-1) > 215).sum() for size in drawing.RADII]
    assert areas[1] > 3 * areas[0]
    dark = {t: (still("blink", texture=t).max(-1) < 40).sum() for t in drawing.TEXTURES}
    assert dark["plain"] == 0 and min(dark[t] for t in ("striped", "dotted")) > 200
    edges = {
        t: np.diff((still("round", texture=t).max(-1) < 40), axis=1).sum((1, 2)).mean()
        for t in drawing.TEXTURES
    }
    assert min(edges[t] for t in ("striped", "dotted")) > 80 > 0 == edges["plain"]
    blues = (still("round", colour="blue").astype(int) @ (-1, 0, 1)).max()
    assert blues > 150
