"""Scores every text against every clip, and turns the scores into figures.

Each clip and each caption is encoded once; the scoring then works on those features
in blocks. Neither the batch, nor the block, nor the number of devices is part of a score.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from data.batches import frame_sources, pipeline
from data.batches.batch import TextBatch, VideoBatch
from data.records import Clip
from hvp_jax.evaluation import metrics
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, scores
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import all_gather_hosts, is_primary, process_index_and_count

BLOCK = 512  # texts, and clips, on the device at a time while scoring


@functools.partial(jax.jit, static_argnames=("clip_chunk", "dtype"))
def _score_block(text, video, paired_weights, clip_chunk, dtype):
    return scores(text, video, paired_weights, clip_chunk, dtype).sum((0, 1))


def _rows(tree, first: int, size: int):
    """Rows `first` to `first + size` of every array, padded by repeating the last."""

    def cut(x):
        x = x[first : first + size]
        return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) if len(x) < size else x

    return jax.tree.map(cut, tree)


def score_matrix(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: np.ndarray | None = None,
    clip_chunk: int = 16,
    dtype: jnp.dtype | None = None,
    text_block: int = BLOCK,
    clip_block: int = BLOCK,
) -> np.ndarray:
    """Features of all texts and all clips -> scores [texts, clips], summed over terms and taps.

    `paired_weights` [clips, W]: word weights of each clip's own caption (the reference).
    """
    texts, clips = text.words.shape[0], video.patches.shape[0]
    text_block, clip_block = min(text_block, texts), min(clip_block, clips)
    matrix = np.empty((texts, clips), text.sentence.dtype)
    for j in range(0, clips, clip_block):
        part = jax.device_put(_rows(video, j, clip_block))
        paired = None if paired_weights is None else _rows(paired_weights, j, clip_block)
        for i in range(0, texts, text_block):
            block = _score_block(_rows(text, i, text_block), part, paired, clip_chunk, dtype)
            height, width = matrix[i : i + text_block, j : j + clip_block].shape
            matrix[i : i + height, j : j + width] = np.asarray(block)[:height, :width]
    return matrix


class Scorer:
    """The compiled encoders of a model, laid over devices, and its way of scoring."""

    def __init__(
        self,
        model: HVPNet,
        config: ConfigDict,
        partitioner: Partitioner,
        width: int,
        beat: Callable[[], None] = lambda: None,
    ):
        """Clips are padded to `width` frames; `beat` is called with every batch."""
        noise = config.seed if config.distill.noise == "always" else None
        self.config, self.model, self.width = config, model, width
        self._beat = beat
        self._rows = config.eval.batch_size * len(partitioner.local_devices)
        self.paired = config.similarity.word_weights == "paired"
        self._text = partitioner.compile_eval_fn(functools.partial(encode_text, model=model))
        self._video = partitioner.compile_eval_fn(
            functools.partial(encode_video, model=model, noise_seed=noise)
        )

    def texts(self, params: optax.Params, clips: Sequence[Clip]) -> TextFeatures:
        """Every caption of the clips, clip by clip."""
        batches = pipeline.eval_texts(clips, self.config.data.max_words, self._rows)
        return self._encode(self._text, params, batches)

    def videos(
        self,
        params: optax.Params,
        clips: Sequence[Clip],
        numbers: np.ndarray,
        source: frame_sources.FrameSource,
        say: str = "",
    ) -> VideoFeatures:
        """The clips of the given numbers, in order; `say` names the progress bar."""
        size = self._rows
        batches = pipeline.eval_videos([clips[i] for i in numbers], source, self.width, size)
        show = say and is_primary()
        bar = tqdm(batches, say, total=-(-len(numbers) // size), disable=not show, unit="batch")
        return self._encode(self._video, params, bar, numbers)

    def _encode(
        self,
        encode: Callable,
        params: optax.Params,
        batches: Iterator,
        numbers: np.ndarray | None = None,
    ):
        parts, seen = [], 0
        for batch, valid in batches:
            self._beat()
            if numbers is not None:
                index = np.zeros(len(batch.video), np.int32)
                index[:valid] = numbers[seen : seen + valid]
                batch = batch, index
            parts.append(jax.tree.map(lambda x, n=valid: x[:n], encode(params, batch)))
            seen += valid
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def matrix(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        video_of_text: np.ndarray,
        numbers: np.ndarray,
    ) -> np.ndarray:
        """Scores [texts, numbers] of those clips. Paired, a clip's own caption is its first."""
        paired = None
        if self.paired:
            _, first = np.unique(video_of_text, return_index=True)
            paired = text.word_weights[first[numbers]]
        chunk = self.config.similarity.chunk_size
        return score_matrix(text, video, paired, chunk, self.model.dtype)


def evaluate_split(
    scorer: Scorer,
    params: optax.Params,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    say: str = "",
) -> tuple[dict, np.ndarray]:
    """T2V and V2T figures of `clips`, and the scores [texts, clips] they come from.

    Each process encodes and scores every so many-th clip; all of them get all scores.
    """
    video_of_text = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    index, count = process_index_and_count()
    # The last ones twice, so that each process has as many.
    shares = np.minimum(np.arange(-(-len(clips) // count) * count), len(clips) - 1)
    shares = shares.reshape(-1, count)  # [clips of a process, processes]
    text = scorer.texts(params, clips)
    video = scorer.videos(params, clips, shares[:, index], source, say)
    own = scorer.matrix(text, video, video_of_text, shares[:, index])
    matrix = np.empty((len(video_of_text), len(clips)), own.dtype)
    matrix[:, shares.T] = all_gather_hosts(own).swapaxes(0, 1)
    result = {
        "text_to_video": metrics.text_to_video(matrix, video_of_text),
        "video_to_text": metrics.video_to_text(matrix, video_of_text),
        "counts": {"videos": len(clips), "captions": len(video_of_text)},
    }
    return result, matrix


def encode_text(params: optax.Params, batch: TextBatch, model: HVPNet) -> TextFeatures:
    """What scoring needs of the texts."""
    return model.apply({"params": params}, *batch, method="encode_text")


def encode_video(
    params: optax.Params,
    batch: tuple[VideoBatch, np.ndarray],
    model: HVPNet,
    noise_seed: int | None = None,
) -> VideoFeatures:
    """What scoring needs of the clips; a batch comes with their numbers [b] in the gallery.

    `noise_seed` turns the clustering's noise on (the reference), with a key per number.
    """
    (video, mask), index = batch
    keys = None
    if noise_seed is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(noise_seed), index)
    return model.apply({"params": params}, video, mask, keys, method="encode_video")
