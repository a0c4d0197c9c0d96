"""Batches of evaluation: everything once, in order, padded at the end."""

import numpy as np
import pytest

from data.batches import eval_batches
from data.tokenizer import tokenize
from tests.helpers.synthetic_frames import CLIPS, FRAMES, SIZE, WORDS, SyntheticFrames


@pytest.mark.parametrize("batch_size", [1, 4, 6, 50])
def test_evaluation_yields_everything_once_in_order(batch_size):
    seen = []
    for batch, valid in eval_batches.eval_texts(CLIPS, WORDS, batch_size):
        assert batch.text_ids.shape == batch.text_mask.shape == (batch_size, WORDS)
        assert batch.text_ids.dtype == np.int32 and batch.text_mask.dtype == bool
        assert batch.text_mask[:valid].any(1).all() and not batch.text_mask[valid:].any()
        assert not batch.text_ids[valid:].any()
        seen += batch.text_ids[:valid].tolist()
    captions = [caption for clip in CLIPS for caption in clip.captions]
    assert seen == tokenize(captions, WORDS)[0].tolist()

    colours = []
    for batch, valid in eval_batches.eval_videos(CLIPS, SyntheticFrames(), FRAMES, batch_size):
        assert batch.video.shape == (batch_size, FRAMES, SIZE, SIZE, 3)
        assert batch.video_mask.sum(1)[:valid].tolist() == [
            1 + i % FRAMES for i in range(len(colours), len(colours) + valid)
        ]
        assert not batch.video[valid:].any() and not batch.video_mask[valid:].any()
        colours += batch.video[:valid, 0, 0, 0, 0].tolist()
    assert colours == [i + 1 for i in range(len(CLIPS))]


def test_evaluation_of_no_clips_yields_no_batches():
    assert list(eval_batches.eval_texts([], WORDS, 4)) == []
    assert list(eval_batches.eval_videos([], SyntheticFrames(), FRAMES, 4)) == []
