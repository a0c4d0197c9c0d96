"""Videos to search: small ones that differ."""

from pathlib import Path

import numpy as np

from tests.helpers.clips import write_video


def write_clip(path: Path, seed: int, seconds: int = 3) -> Path:
    """A video of one frame a second, each of another colour on the left and on the right."""
    colours = np.random.default_rng(seed).integers(0, 256, (seconds, 1, 2, 3), np.uint8)
    frames = [np.repeat(np.repeat(colour, 16, axis=1), 32, axis=0) for colour in colours]
    return write_video(path, frames, rate=1)
