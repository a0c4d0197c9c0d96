"""What the pipeline makes and a step takes: batches of arrays, on the host or on devices.

b examples, w tokens of a caption, t frames of a clip. A mask is true where there is a token
or a frame; what lies beyond is padding.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8


class TextBatch(NamedTuple):
    text_ids: Int32[np.ndarray, "b w"]
    text_mask: Bool[np.ndarray, "b w"]


class VideoBatch(NamedTuple):
    video: UInt8[np.ndarray, "b t h w 3"]
    video_mask: Bool[np.ndarray, "b t"]


class Batch(NamedTuple):
    """Pairs of a caption and a clip: example i of the one belongs to example i of the other."""

    text_ids: Int32[np.ndarray, "b w"]
    text_mask: Bool[np.ndarray, "b w"]
    video: UInt8[np.ndarray, "b t h w 3"]
    video_mask: Bool[np.ndarray, "b t"]
