"""The examples of an epoch: all pairs, or one caption of each clip."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from data.batches import pipeline
from data.batches.batch import Batch, BatchOfClips
from data.batches.pairs import count_examples
from data.errors import DataError
from tests.helpers.synthetic_frames import CLIPS, FRAMES, WORDS, SyntheticFrames, make_clips, pairs

MANY = make_clips([3, 1, 40, 0, 4, 2, 5, 6, 2])  # eight clips with captions


def start(sampling="videos", batch_size=4, host=(0, 1), clips=MANY, seed=42, **fields):
    return pipeline.train_batches(
        pipeline.numbered_batches(
            clips, SyntheticFrames(), FRAMES, WORDS, batch_size=batch_size, seed=seed,
            host_index=host[0], host_count=host[1], sampling=sampling, **fields,
        )
    )  # fmt: skip


def of_many(batches) -> list[tuple[int, str]]:
    return pairs(batches, MANY)


def take(run, n):
    return [next(run) for _ in range(n)]


def test_an_epoch_of_videos_has_each_clip_once_with_a_caption_of_its_own():
    run, seen = start(), defaultdict(set)
    for _ in range(30):
        epoch = of_many(take(run, 2))
        assert sorted(clip for clip, _ in epoch) == [0, 1, 2, 4, 5, 6, 7, 8]
        for clip, caption in epoch:
            assert caption in MANY[clip].captions
            seen[clip].add(caption)
    assert seen[0] == set(MANY[0].captions) and seen[1] == set(MANY[1].captions)
    assert len(seen[2]) > 15  # of 40, in 30 epochs
    assert of_many(take(start(), 4)) != of_many(take(start(seed=43), 4))
    assert of_many(take(start(), 4)) == of_many(take(start(), 4))


def test_captions_depend_on_the_epoch_and_the_clip_but_not_on_the_processes():
    whole = of_many(take(start(batch_size=4), 20))
    halves = [take(start(batch_size=2, host=(i, 2)), 20) for i in range(2)]
    joined = [of_many([batch]) for together in zip(*halves, strict=True) for batch in together]
    assert sum(joined, []) == whole
    eight = of_many(take(start(batch_size=8), 10))  # the same order in batches of another size
    assert eight == whole


def test_videos_resume_with_the_state_of_the_iterator():
    run = start()
    take(run, 5)
    state = json.loads(json.dumps(run.get_state()))
    after = of_many(take(run, 6))
    fresh = start()
    fresh.set_state(state)
    assert of_many(take(fresh, 6)) == after
    assert state.keys() == start("pairs").get_state().keys()


def test_no_clip_meets_itself_in_a_batch_of_videos():
    for sampling, most in (("videos", 1), ("pairs", 3)):
        counts = [
            Counter(clip for clip, _ in of_many([batch])).most_common(1)[0][1]
            for batch in take(start(sampling), 10)
        ]
        assert max(counts) == 1 if most == 1 else max(counts) >= most


def test_batches_tell_which_examples_have_the_same_clip_if_they_are_to():
    told = take(start("pairs", with_clip_ids=True), 8)
    plain = take(start("pairs"), 8)
    for batch, other in zip(told, plain, strict=True):
        assert type(batch) is BatchOfClips and type(other) is Batch
        assert batch.clip_ids.dtype == np.int32
        assert batch.clip_ids.tolist() == [clip for clip, _ in of_many([batch])]
        for x, y in zip(batch[:4], other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_the_examples_of_an_epoch_are_counted_and_must_fill_a_batch():
    assert count_examples(CLIPS, "pairs") == 12 and count_examples(CLIPS, "videos") == 5
    start(clips=CLIPS, batch_size=5)
    with pytest.raises(DataError, match="5 clips in .* batch of 6: add clips"):
        start(clips=CLIPS, batch_size=6)
