"""A decoded frame as it is shown, at the size that the model takes."""

from typing import Any

import av
import numpy as np
from PIL import Image

UPRIGHT = False, 1, 1  # the orientation of a frame that is shown as it is stored


def resize_and_crop(frame: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image [H, W, 3] -> uint8 [size, size, 3].

    The short side is resized to `size` (bicubic) and the centre is cropped; both are rounded
    as torchvision's Resize and CenterCrop do.
    """
    height, width = frame.shape[:2]
    short = min(height, width)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def read_orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """How the file asks for its frames to be shown: whether rows and columns are swapped first,
    then the steps (1, or -1 for mirrored) through rows and columns.

    Call this for one frame of a file only: a frame whose side data was read stays in memory
    until Python's cycle collector runs.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    # x' = a x + c y and y' = b x + d y; only the eight rotations and reflections occur.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    swap = abs(a) < abs(b)
    right, down = (c, b) if swap else (a, d)
    return swap, -1 if down < 0 else 1, -1 if right < 0 else 1


def render_frame(frame: av.VideoFrame, orientation: tuple[bool, int, int], size: int) -> np.ndarray:
    """uint8 [size, size, 3]: a frame as it is shown, resized and cropped."""
    return resize_and_crop(_as_shown(frame, orientation), size)


def render_whole(frame: av.VideoFrame, orientation: tuple[bool, int, int], side: int) -> np.ndarray:
    """uint8 [H, W, 3]: a frame as it is shown, all of it, with no side longer than `side`."""
    image = Image.fromarray(_as_shown(frame, orientation))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _as_shown(frame: av.VideoFrame, orientation: tuple[bool, int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: transparency over black, then rotated."""
    has_alpha = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", threads=1)
    if has_alpha:
        pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255
    swap, down, right = orientation
    pixels = (pixels.swapaxes(0, 1) if swap else pixels)[::down, ::right]
    return np.ascontiguousarray(pixels, np.uint8)
