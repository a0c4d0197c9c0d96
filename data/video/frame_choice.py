"""Which frames of a stretch of video a clip has: rules from (first, last, step, max_frames).

`first` and `last` are the numbers of the stretch's frames, both included, and `step` is how many
frames a second has. A rule returns at most `max_frames` numbers, rising, and all rules the same
number of them: that of one frame per second, or `max_frames`.
"""

from collections.abc import Callable

import numpy as np

FrameChoice = Callable[[int, int, int, int], list[int]]


def uniform(first: int, last: int, step: int, max_frames: int) -> list[int]:
    """A frame per second; if that is more than `max_frames`, so many of them, evenly spaced."""
    positions = range(first, last + 1, step)
    if len(positions) <= max_frames:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]


def head(first: int, last: int, step: int, max_frames: int) -> list[int]:
    """A frame per second, the first `max_frames` of them (CLIP4Clip's `head`)."""
    return list(range(first, last + 1, step)[:max_frames])


def random_in_segment(rng: np.random.Generator) -> FrameChoice:
    """A random frame of each of equal segments (TSN, arXiv 1608.00859, section 3.1)."""

    def choose(first: int, last: int, step: int, max_frames: int) -> list[int]:
        segments = min(len(range(first, last + 1, step)), max_frames)
        edges = first + np.arange(segments + 1) * (last + 1 - first) // segments
        return rng.integers(edges[:-1], edges[1:]).tolist()

    return choose
