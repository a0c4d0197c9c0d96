"""Augmentation in the training stream: it depends on the position of an example only."""

import collections
import itertools
import json

import numpy as np
import pytest

from configs.base import get_config
from data import inputs
from data.batches import pipeline
from data.batches.augment import Augment, parse
from data.batches.batch import Batch
from data.records import Clip
from data.synthetic import shapes
from hvp_jax.cli.verbs import train

NOISE = np.random.default_rng(3).integers(0, 256, (6, 24, 24, 3), np.uint8)
ALL = Augment(42, parse("rand-m7-n9-mstd0.5-inc1"), 0.4, True)


class NoiseFrames:
    """The same noise for every clip, so that batches differ by their augmentation only."""

    size, longest = 24, 6

    def __getitem__(self, clip_id: str) -> np.ndarray:
        return NOISE[: 1 + int(clip_id)]


CLIPS = [Clip(str(i), "", (f"text {i}", f"again {i}"), "train") for i in range(4)]


def start(batch_size=2, workers=0, host=(0, 1), augment=ALL):
    numbered = pipeline.numbered_batches(
        CLIPS,
        NoiseFrames(),
        6,
        7,
        batch_size=batch_size,
        seed=42,
        host_index=host[0],
        host_count=host[1],
        augment=augment,
    )
    return pipeline.train_batches(numbered, workers)


def take(batches, n: int) -> list[Batch]:
    return list(itertools.islice(batches, n))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_pixels_depend_on_the_position_in_the_stream_only():
    expected = take(start(), 12)  # three epochs
    parts = [take(start(1, host=(i, 2)), 12) for i in range(2)]
    joined = [
        Batch(*map(np.concatenate, zip(*batches, strict=True)))
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, expected)
    larger = take(start(4), 6)
    np.testing.assert_array_equal(
        np.concatenate([batch.video for batch in larger]),
        np.concatenate([batch.video for batch in expected]),
    )
    run = start()
    take(run, 5)
    state = json.loads(json.dumps(run.get_state()))
    fresh = start()
    fresh.set_state(state)
    assert_same(take(fresh, 7), expected[5:])
    with_workers = start(workers=2)
    assert_same(take(with_workers, 8), expected[:8])
    with_workers.close()


def test_augmentation_differs_between_epochs_and_leaves_padding_unchanged():
    plain, augmented = take(start(augment=None), 12), take(start(), 12)
    versions = collections.defaultdict(set)
    for before, after in zip(plain, augmented, strict=True):
        for key in ("video_mask", "text_ids", "text_mask"):
            np.testing.assert_array_equal(getattr(before, key), getattr(after, key))
        assert not after.video[~after.video_mask].any()
        for ids, video in zip(after.text_ids, after.video, strict=True):
            versions[ids.tobytes()].add(video.tobytes())
    assert len(versions) == 8 and all(len(videos) == 3 for videos in versions.values())


class BatchesRequested(Exception):
    """Training has requested its batches."""


def test_training_uses_the_augmentation_of_the_config(tmp_path, monkeypatch):
    shapes.make_dataset(str(tmp_path / "clips"), seed=5, train=8, val=0, test=8)
    config = get_config()
    config.model.variant = "tiny"
    config.data.root = str(tmp_path / "clips")
    config.data.max_frames, config.train.batch_size, config.eval.batch_size = 1, 8, 8
    augments = []

    def numbered_batches(*args, augment, **kwargs):
        augments.append(augment)
        raise BatchesRequested

    monkeypatch.setattr(inputs.pipeline, "numbered_batches", numbered_batches)
    for text, crop, flip in (("", 1.0, False), ("rand-m7-n4-mstd0.5-inc1", 0.7, True)):
        config.augment.update(rand_augment=text, crop=crop, flip=flip)
        with pytest.raises(BatchesRequested):
            train.run(config, tmp_path / "run")
    assert augments == [None, Augment(42, parse("rand-m7-n4-mstd0.5-inc1"), 0.7, True)]
