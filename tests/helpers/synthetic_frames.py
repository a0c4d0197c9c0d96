"""A frame source without files, whose frames tell its clips apart."""

import numpy as np

from data.batches.batch import Batch
from data.records import Clip
from data.tokenizer import tokenize

SIZE, FRAMES, WORDS = 8, 3, 7


def make_clips(counts: list[int]) -> list[Clip]:
    """A clip for each count, with that number of captions."""
    return [
        Clip(f"id{i}", f"{i}.mp4", tuple(f"clip {i} text {j}" for j in range(n)), "train")
        for i, n in enumerate(counts)
    ]


class SyntheticFrames:
    """A source without files: clip i has 1 + i % FRAMES frames of the colour i + 1."""

    size, longest = SIZE, FRAMES

    def __getitem__(self, clip_id: str) -> np.ndarray:
        i = int(clip_id[2:])
        return np.full((1 + i % FRAMES, SIZE, SIZE, 3), i + 1, np.uint8)


CLIPS = make_clips([3, 1, 2, 0, 4, 2])  # 12 pairs


def pairs(batches: list[Batch], clips: list[Clip] = CLIPS) -> list[tuple[int, str]]:
    """(clip, caption) of every row: the clip from its colour, the caption from its tokens."""
    captions = [caption for clip in clips for caption in clip.captions]
    caption_of = {tokenize([caption], WORDS)[0].tobytes(): caption for caption in captions}
    return [
        (int(video[0, 0, 0, 0]) - 1, caption_of[ids.tobytes()])
        for batch in batches
        for video, ids in zip(batch.video, batch.text_ids, strict=True)
    ]
