"""Scores every text against every clip and computes retrieval metrics from the scores.

Each clip and each caption is encoded once. The features are then scored in blocks. Scores
depend neither on the batch size, nor on the block size, nor on the number of devices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from tqdm import tqdm

from data.batches import eval_batches, frame_sources
from data.batches.batch import TextBatch, VideoBatch
from data.records import Clip
from hvp_jax.evaluation import metrics
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, scores
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import all_gather_hosts, is_primary, process_index_and_count

BLOCK = 512  # texts, and clips, scored at a time


@functools.partial(jax.jit, static_argnames=("clip_chunk", "dtype"))
def _score_block(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: Float[Array, "clips w"] | None,
    clip_chunk: int,
    *,
    dtype: DTypeLike | None,
) -> Float[Array, "texts clips"]:
    return scores(text, video, paired_weights, clip_chunk, dtype=dtype).sum((0, 1))


def _rows(tree: Any, first: int, size: int) -> Any:
    """Rows `first` to `first + size` of every array, padded by repeating the last row."""

    def cut(x):
        x = x[first : first + size]
        return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) if len(x) < size else x

    return jax.tree.map(cut, tree)


def score_matrix(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: Float[Array | np.ndarray, "clips w"] | None = None,
    clip_chunk: int = 16,
    *,
    dtype: DTypeLike | None = None,
    text_block: int = BLOCK,
    clip_block: int = BLOCK,
) -> Float[np.ndarray, "texts clips"]:
    """Scores of all texts and all clips, summed over terms and taps.

    `paired_weights`: word weights of each clip's own caption (the reference).
    """
    first_text, first_video = jax.tree.leaves(text)[0], jax.tree.leaves(video)[0]
    texts, clips = len(first_text), len(first_video)
    text_block, clip_block = min(text_block, texts), min(clip_block, clips)
    matrix = np.empty((texts, clips), first_text.dtype)
    for j in range(0, clips, clip_block):
        video_block = jax.device_put(_rows(video, j, clip_block))
        paired = None if paired_weights is None else _rows(paired_weights, j, clip_block)
        for i in range(0, texts, text_block):
            block = _score_block(
                _rows(text, i, text_block), video_block, paired, clip_chunk, dtype=dtype
            )
            height, width = matrix[i : i + text_block, j : j + clip_block].shape
            matrix[i : i + height, j : j + width] = np.asarray(block)[:height, :width]
    return matrix


class Scorer:
    """The encoders of a model, compiled for the devices, and its scoring settings."""

    def __init__(
        self,
        model: HVPNet,
        config: ConfigDict,
        partitioner: Partitioner,
        *,
        num_frames: int,
        heartbeat: Callable[[], None] = lambda: None,
    ):
        """Clips are padded to `num_frames` frames; `heartbeat` is called for every batch."""
        noise_seed = config.seed if config.distillation.noise == "always" else None
        self.config, self.model, self.num_frames = config, model, num_frames
        self._heartbeat = heartbeat
        self._batch_size = config.eval.batch_size * len(partitioner.local_devices)
        self.paired = config.similarity.word_weights == "paired"
        self._encode_text = partitioner.compile_eval_fn(functools.partial(encode_text, model=model))
        self._encode_video = partitioner.compile_eval_fn(
            functools.partial(encode_video, model=model, noise_seed=noise_seed)
        )

    def encode_texts(self, params: optax.Params, clips: Sequence[Clip]) -> TextFeatures:
        """Features of all captions, in the order of the clips."""
        batches = eval_batches.eval_texts(clips, self.config.data.max_words, self._batch_size)
        return self._encode(self._encode_text, params, batches)

    def encode_videos(
        self,
        params: optax.Params,
        clips: Sequence[Clip],
        indices: Int[np.ndarray, " clips"],
        source: frame_sources.FrameSource,
        *,
        progress_label: str = "",
    ) -> VideoFeatures:
        """Features of the clips at `indices`; without a label there is no progress bar."""
        selected = [clips[i] for i in indices]
        batches = eval_batches.eval_videos(selected, source, self.num_frames, self._batch_size)
        progress = tqdm(
            batches,
            progress_label,
            total=-(-len(indices) // self._batch_size),
            disable=not (progress_label and is_primary()),
            unit="batch",
        )
        return self._encode(self._encode_video, params, iter(progress), indices)

    def _encode(
        self,
        encode: Callable[[optax.Params, Any], Any],
        params: optax.Params,
        batches: Iterator[tuple[Any, int]],
        clip_indices: np.ndarray | None = None,
    ) -> Any:
        """Features of all valid rows of the batches; video batches come with `clip_indices`."""
        parts, encoded = [], 0
        for batch, valid in batches:
            self._heartbeat()
            if clip_indices is not None:
                index = np.zeros(len(batch.video), np.int32)
                index[:valid] = clip_indices[encoded : encoded + valid]
                batch = batch, index
            parts.append(jax.tree.map(lambda x, n=valid: x[:n], encode(params, batch)))
            encoded += valid
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def score(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        video_of_text: Int[np.ndarray, " texts"],
        indices: Int[np.ndarray, " clips"],
    ) -> Float[np.ndarray, "texts clips"]:
        """Scores of all texts and the clips at `indices`, whose features are `video`.

        With paired word weights, a clip's own caption is its first.
        """
        paired = None
        if self.paired and text.word_weights is not None:
            _, first = np.unique(video_of_text, return_index=True)
            paired = text.word_weights[first[indices]]
        chunk = self.config.similarity.chunk_size
        return score_matrix(text, video, paired, chunk, dtype=self.model.dtype)


def evaluate_split(
    scorer: Scorer,
    params: optax.Params,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    *,
    progress_label: str = "",
) -> tuple[dict[str, Any], Float[np.ndarray, "texts clips"]]:
    """T2V and V2T metrics and the counts of `clips`, and the scores."""
    matrix, _ = score_split(scorer, params, clips, source, progress_label=progress_label)
    video_of_text = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    split_metrics = {
        "text_to_video": metrics.text_to_video(matrix, video_of_text),
        "video_to_text": metrics.video_to_text(matrix, video_of_text),
        "counts": {"videos": len(clips), "captions": len(video_of_text)},
    }
    return split_metrics, matrix


def score_split(
    scorer: Scorer,
    params: optax.Params,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    *,
    bank: Sequence[Clip] = (),
    progress_label: str = "",
) -> tuple[Float[np.ndarray, "texts clips"], Float[np.ndarray, "bank clips"]]:
    """Scores of the captions of `clips` against the clips, and of the captions of `bank`.

    With N processes, each one encodes and scores every Nth clip; all receive all scores.
    """
    video_of_text = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    index, count = process_index_and_count()
    # The last clip is repeated so that every process has the same number of clips.
    shares = np.minimum(np.arange(-(-len(clips) // count) * count), len(clips) - 1)
    shares = shares.reshape(-1, count)  # [clips of a process, processes]
    text = scorer.encode_texts(params, [*clips, *bank])
    video = scorer.encode_videos(
        params, clips, shares[:, index], source, progress_label=progress_label
    )
    own = scorer.score(text, video, video_of_text, shares[:, index])
    matrix = np.empty((len(own), len(clips)), own.dtype)
    matrix[:, shares.T] = all_gather_hosts(own).swapaxes(0, 1)
    return matrix[: len(video_of_text)], matrix[len(video_of_text) :]


def encode_text(params: optax.Params, batch: TextBatch, model: HVPNet) -> TextFeatures:
    """The text features of a batch."""
    features = model.apply({"params": params}, *batch, method="encode_text")
    return cast(TextFeatures, features)  # Flax types the result of `apply` as Any


def encode_video(
    params: optax.Params,
    batch: tuple[VideoBatch, Int[Array, " b"] | None],
    model: HVPNet,
    noise_seed: int | None = None,
) -> VideoFeatures:
    """The video features of a batch, which comes with the clips' indices in the gallery.

    `noise_seed` enables the clustering's noise (the reference), with a key for each index.

    A CPU computes clip by clip: in a batch, rounding depends on its size, which changes clusters.
    """
    (video, mask), index = batch
    keys = None
    if noise_seed is not None:
        assert index is not None  # the noise of a clip depends on its index
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(noise_seed), index)

    def encode(clips) -> VideoFeatures:
        return cast(VideoFeatures, model.apply({"params": params}, *clips, method="encode_video"))

    if jax.default_backend() != "cpu":
        return encode((video, mask, keys))

    def encode_one(clip):
        return jax.tree.map(lambda x: x[0], encode(jax.tree.map(lambda x: x[None], clip)))

    return jax.lax.map(encode_one, (video, mask, keys))
