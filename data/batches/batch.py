"""The batches that the pipeline produces and a training or evaluation step consumes.

Dimensions: b examples, w tokens of a caption, t frames of a clip, height x width pixels of 3
channels, which are one axis of 3 width columns on the devices. A mask is True for valid tokens or
frames and False for padding.

The pipeline fills the fields with NumPy arrays. The partitioner returns the same batch with
arrays on the devices; tests and `bench` also use batches of `jax.ShapeDtypeStruct`. So the
shapes and dtypes are part of the types, the class of the arrays is not.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Int32, UInt8


class TextBatch(NamedTuple):
    """Captions as token ids; the padding of a row comes after its valid tokens."""

    text_ids: Int32[Any, "b w"]
    text_mask: Bool[Any, "b w"]


class VideoBatch(NamedTuple):
    """Frames of clips, RGB; the padding of a row comes after its valid frames."""

    video: UInt8[Any, "b t height *columns"]
    video_mask: Bool[Any, "b t"]


class Batch(NamedTuple):
    """Captions and clips: caption i describes clip i, every other clip is a negative for it."""

    text_ids: Int32[Any, "b w"]
    text_mask: Bool[Any, "b w"]
    video: UInt8[Any, "b t height *columns"]
    video_mask: Bool[Any, "b t"]


class BatchOfClips(NamedTuple):
    """A `Batch` with the number of each example's clip: equal for examples of the same clip."""

    text_ids: Int32[Any, "b w"]
    text_mask: Bool[Any, "b w"]
    video: UInt8[Any, "b t height *columns"]
    video_mask: Bool[Any, "b t"]
    clip_ids: Int32[Any, " b"]


TrainBatch = Batch | BatchOfClips
