"""Rows of arrays in batches of few sizes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import numpy as np

from data.batches.batch import VideoBatch
from hvp_jax.models.similarity import VideoFeatures


def chunks(values: Sequence, size: int) -> list[Any]:
    """Parts of at most `size` elements, in order."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def least(sizes: Sequence[int], count: int) -> int:
    """The first of rising sizes that is `count` or more; `count` if there is none."""
    return next((size for size in sizes if size >= count), count)


def num_rows(tree: Any) -> int:
    """How many rows every array of a tree has."""
    return len(jax.tree.leaves(tree)[0])


def pad_rows(tree: Any, size: int) -> Any:
    """Adds rows of zeros to every array, up to `size` rows."""

    def pad(x):
        missing = size - len(x)
        return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x

    return jax.tree.map(pad, tree)


def concatenated(parts: Sequence[Any]) -> Any:
    """The rows of trees of arrays, one tree after the other.

    Clips that were padded to fewer frames have fewer tokens; they get as many as the others.
    """
    if parts and isinstance(parts[0], VideoFeatures) and parts[0].patches is not None:
        count = max(part.patches.shape[2] for part in parts)
        parts = [pad_tokens(part, count) for part in parts]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def pad_tokens(video: VideoFeatures, count: int) -> VideoFeatures:
    """The features of clips with so many tokens at each tap: the first again, of weight 0.

    That changes no score.
    """
    assert video.patches is not None and video.patch_weights is not None
    missing = count - video.patches.shape[2]
    if not missing:
        return video
    first = np.repeat(video.patches[:, :, :1], missing, axis=2)
    weights = np.pad(np.asarray(video.patch_weights), ((0, 0), (0, 0), (0, missing)))
    patches: Any = np.concatenate([video.patches, first], axis=2)
    return dataclasses.replace(video, patches=patches, patch_weights=cast(Any, weights))


def video_batch(frames: Sequence[np.ndarray], num_frames: int) -> VideoBatch:
    """Clips of any length as one batch, padded to `num_frames` frames."""
    video = np.zeros((len(frames), num_frames, *frames[0].shape[1:]), np.uint8)
    for row, clip in zip(video, frames, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in frames])
    return VideoBatch(video, np.arange(num_frames) < lengths[:, None])


def read_ahead(pool: ThreadPoolExecutor, read: Callable, parts: Sequence) -> Iterator[list]:
    """What `read` returns for each element, part by part; one more part is read meanwhile."""
    waiting: list = []
    for part in [*parts, []]:
        coming = [pool.submit(read, element) for element in part]
        if waiting:
            yield [future.result() for future in waiting]
        waiting = coming


def pad_patches(features: VideoFeatures, count: int) -> VideoFeatures:
    """Adds patches up to `count` at each tap, as the model pads: the first one, of weight 0."""
    patches, weights = features.patches, features.patch_weights
    if patches is None or weights is None or patches.shape[2] == count:
        return features
    missing = count - patches.shape[2]
    first = np.repeat(patches[:, :, :1], missing, axis=2)
    return features.replace(
        patches=np.concatenate([patches, first], axis=2),
        patch_weights=np.pad(weights, [(0, 0), (0, 0), (0, missing)]),
    )
