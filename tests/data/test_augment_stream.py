"""Augmentation in the stream of training: whose draw an example gets, and that it gets one."""

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
from hvp_jax.cli import train

NOISE = np.random.default_rng(3).integers(0, 256, (6, 24, 24, 3), np.uint8)
ALL = Augment(42, parse("rand-m7-n9-mstd0.5-inc1"), 0.4, True)


class Noise:
    """A source of the same noise for every clip, so that batches differ by their draws alone."""

    size, longest = 24, 6

    def __getitem__(self, clip_id: str) -> np.ndarray:
        return NOISE[: 1 + int(clip_id)]


CLIPS = [Clip(str(i), "", (f"text {i}", f"again {i}"), "train") for i in range(4)]


def start(batch_size=2, workers=0, host=(0, 1), augmented=ALL):
    numbered = pipeline.numbered_batches(
        CLIPS, Noise(), 6, 7, batch_size, 42, *host, augment=augmented
    )
    return pipeline.train_batches(numbered, workers)


def take(batches, n: int) -> list[dict]:
    return list(itertools.islice(batches, n))


def assert_same(one: list[dict], other: list[dict]) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_pixels_depend_on_the_place_in_the_stream_alone():
    whole = take(start(), 12)  # three epochs
    parts = [take(start(1, host=(i, 2)), 12) for i in range(2)]
    pairs = zip(*parts, strict=True)
    joined = [Batch(*map(np.concatenate, zip(*pair, strict=True))) for pair in pairs]
    assert_same(joined, whole)
    half = take(start(4), 6)
    np.testing.assert_array_equal(
        np.concatenate([batch.video for batch in half]),
        np.concatenate([batch.video for batch in whole]),
    )
    run = start()
    take(run, 5)
    state = json.loads(json.dumps(run.get_state()))
    fresh = start()
    fresh.set_state(state)
    assert_same(take(fresh, 7), whole[5:])
    with_workers = start(workers=2)
    assert_same(take(with_workers, 8), whole[:8])
    with_workers.close()


def test_an_example_is_drawn_anew_in_every_epoch_and_padding_left_alone():
    plain, drawn = take(start(augmented=None), 12), take(start(), 12)
    looks = collections.defaultdict(set)
    for before, after in zip(plain, drawn, strict=True):
        for key in ("video_mask", "text_ids", "text_mask"):
            np.testing.assert_array_equal(getattr(before, key), getattr(after, key))
        assert not after.video[~after.video_mask].any()
        for ids, video in zip(after.text_ids, after.video, strict=True):
            looks[ids.tobytes()].add(video.tobytes())
    assert len(looks) == 8 and all(len(seen) == 3 for seen in looks.values())


class Reached(Exception):
    """Training asked for its batches."""


def test_training_is_augmented_as_the_keys_say(tmp_path, monkeypatch):
    shapes.make_dataset(str(tmp_path / "clips"), seed=5, train=8, val=0, test=8)
    config = get_config()
    config.model.variant = "tiny"
    config.data.root = str(tmp_path / "clips")
    config.data.max_frames, config.train.batch_size, config.eval.batch_size = 1, 8, 8
    asked = []

    def asked_for(*arguments, augment, **hosts):
        asked.append(augment)
        raise Reached

    monkeypatch.setattr(inputs.pipeline, "numbered_batches", asked_for)
    for text, crop, flip in (("", 1.0, False), ("rand-m7-n4-mstd0.5-inc1", 0.7, True)):
        config.augment.update(rand_augment=text, crop=crop, flip=flip)
        with pytest.raises(Reached):
            train.run(config, tmp_path / "run")
    assert asked == [None, Augment(42, parse("rand-m7-n4-mstd0.5-inc1"), 0.7, True)]
