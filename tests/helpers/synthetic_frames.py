"""A frame source without files, whose frames tell its clips apart."""

import numpy as np

from data.records import Clip

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
