"""Retriever: a trained model that encodes, scores and explains texts and videos.

`encode_texts`, `encode_frames` and `encode_videos` take any number of inputs. They are computed in
batches of a few sizes, so that few programs are compiled; the features do not depend on the batch.
"""

import functools
import hashlib
import json
import os
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from data import inputs, tokenizer
from data.batches.batch import TextBatch, VideoBatch
from data.batches.frame_sources import num_threads
from data.errors import UsageError
from data.paths import check_path
from data.storage.path import Path, PathLike, absolute, is_bucket
from data.video import decode
from hvp_jax.evaluation import scorer
from hvp_jax.models.model_spec import head_of
from hvp_jax.models.similarity import TextFeatures, VideoFeatures
from hvp_jax.parallel import libtpu
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.retrieval import loading
from hvp_jax.retrieval.batching import (
    chunks,
    concatenated,
    least,
    num_rows,
    pad_patches,
    pad_rows,
    read_ahead,
    video_batch,
)
from hvp_jax.retrieval.explain import Pair, explain, labels_of
from hvp_jax.retrieval.explanation import Explanation
from hvp_jax.retrieval.given import Video, require_some, segment_of, shown, tokens_of
from hvp_jax.retrieval.observe import Observed, observer
from hvp_jax.retrieval.trace import halved
from hvp_jax.training.resume import recorded_num_frames
from hvp_jax.weights.initial import BuiltModel

# A batch is padded to the least of these that it fits in, and of the batch size of the Retriever.
BATCH_SIZES = (1, 8)
# Texts, and clips, that are scored at a time are padded likewise.
BLOCKS = (1, 8, 64, 256, scorer.BLOCK)

Frames = UInt8[np.ndarray, "_ s s 3"]  # of a clip: any number of them


class Retriever:
    """A model with its weights. `load` makes one.

    Features are arrays of NumPy, see `TextFeatures` and `VideoFeatures`.
    """

    weights: str  # where the model was loaded from: an absolute path, or one in a bucket

    def __init__(self, built: BuiltModel, weights: Path, batch_size: int):
        self.config, self.model = built.config, built.model
        self.weights, self.batch_size = str(weights), batch_size
        self.max_words, self.max_frames = self.config.data.max_words, self.config.data.max_frames
        self.image_size = self.model.clip_config.image_size
        partitioner = Partitioner("pmap")
        self.params = built.load_params(partitioner)
        devices = len(partitioner.local_devices)
        sizes = [size for size in BATCH_SIZES if size < batch_size] + [batch_size]
        self._sizes = sorted({-(-size // devices) * devices for size in sizes})
        # Most clips are padded as in the run, and longer ones to the greatest number of frames.
        usual = recorded_num_frames(weights) if self.config.similarity.mask_padding else 0
        side = self.image_size // self.model.clip_config.patch_size
        self._max_patches = self.max_frames * (side * side + 1)
        for _ in range(self.model.stages):
            self._max_patches = halved(self._max_patches)
        self._usual_frames = min(usual or self.max_frames, self.max_frames)
        self._text = partitioner.compile_eval_fn(
            functools.partial(scorer.encode_text, model=self.model)
        )
        self._video = partitioner.compile_eval_fn(
            lambda params, batch: scorer.encode_video(params, (batch, None), self.model)
        )

    @classmethod
    def load(cls, weights: PathLike, *, batch_size: int = 32, precision: str = "") -> "Retriever":
        """The model of a run's workdir, or of any file or folder that `model.weights` takes.

        Of a run, it is the checkpoint that `eval` scores. `batch_size`: the largest number of
        videos, or texts, that are encoded at a time. `precision`: float32, bfloat16 or float64;
        empty: that of the run. Weights of CLIP alone score a video by the mean of its frames.

        Raises UsageError if there are no weights, or if they cannot score a text and a video by
        themselves, and DataError if the weights are damaged.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; use a whole number from 1 on")
        libtpu.quiet_without_chips()
        path = absolute(check_path("weights", os.fspath(weights)))
        return cls(loading.build_model(path, precision), path, batch_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the parameters and of all settings that affect a score."""
        config, model = self.config, self.model
        settings = {
            "clip": vars(model.clip_config),
            "head": vars(head_of(model)),
            "taps": model.taps,
            "normalize": model.normalize,
            "mask_padding": model.mask_padding,
            "dtype": str(np.dtype(model.dtype)),
            "max_words": self.max_words,
            "max_frames": self.max_frames,
            "frames": inputs.frame_choice(config).__name__,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path, x in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
            digest.update(np.ascontiguousarray(x).data)
        return digest.hexdigest()

    def check_query(self, text: str) -> None:
        """Raises UsageError if the model cannot read all of a query, or if it says nothing."""
        tokens = len(tokens_of(text))
        if tokens > self.max_words - 2:
            raise UsageError(
                f"the query {shown(text)} has {tokens} tokens and the model reads at most "
                f"{self.max_words - 2}; shorten it"
            )

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """The features of texts, arrays [texts, ...].

        A text of more than `max_words` tokens is cut, as in evaluation; `check_query` refuses it.
        Raises UsageError if a text is empty.
        """
        require_some(texts, "texts")
        for text in texts:
            tokens_of(text)
        batches = (
            TextBatch(*tokenizer.tokenize(part, self.max_words))
            for part in chunks(texts, self.batch_size)
        )
        return concatenated([self._encode(self._text, batch) for batch in batches])

    def read_frames(self, video: Video) -> Frames:
        """The frames that the model sees of a video, or of a stretch of it, in RGB.

        At most `max_frames`, of `image_size` pixels. Raises DataError, which names the file, if it
        cannot be read, or if a stretch is beyond its end.
        """
        path, start, end = segment_of(video)
        return decode.read_frames(
            path,
            self.image_size,
            self.max_frames,
            start=start,
            end=end,
            choice=inputs.frame_choice(self.config),
        )

    def encode_frames(self, frames: Sequence[Frames]) -> VideoFeatures:
        """The features of clips, arrays [clips, ...], from the frames of `read_frames`."""
        require_some(frames, "clips")
        lengths = [self._padded_length(clip) for clip in frames]
        parts, order = [], np.argsort(lengths, kind="stable").tolist()
        for length in sorted(set(lengths)):
            rows = [i for i in order if lengths[i] == length]
            for chunk in chunks(rows, self.batch_size):
                batch = video_batch([frames[i] for i in chunk], length)
                features = self._encode(self._video, batch)
                parts.append(pad_patches(features, self._max_patches))
        back = np.argsort(order)
        return jax.tree.map(lambda x: x[back], concatenated(parts))

    def _padded_length(self, frames: Frames) -> int:
        """How many frames a clip is padded to."""
        return self._usual_frames if len(frames) <= self._usual_frames else self.max_frames

    def encode_videos(self, videos: Sequence[Video]) -> VideoFeatures:
        """The features of video files or stretches of them, arrays [clips, ...].

        Files are read while others are encoded. Raises DataError, which names the file, if one
        cannot be read.
        """
        require_some(videos, "videos")
        segments = [segment_of(video) for video in videos]
        waits = any(is_bucket(segment.path) for segment in segments)
        with ThreadPoolExecutor(num_threads(types.SimpleNamespace(waits=waits))) as pool:
            batches = read_ahead(pool, self.read_frames, chunks(segments, self.batch_size))
            return concatenated([self.encode_frames(batch) for batch in batches])

    def score(
        self,
        texts: Sequence[str] | TextFeatures,
        videos: Sequence[Video] | VideoFeatures,
    ) -> Float[np.ndarray, "texts clips"]:
        """The score of every text and every video: that of `eval`, whatever is scored with it."""
        text = texts if isinstance(texts, TextFeatures) else self.encode_texts(texts)
        video = videos if isinstance(videos, VideoFeatures) else self.encode_videos(videos)
        rows, columns = num_rows(text), num_rows(video)
        scores = scorer.score_matrix(
            pad_rows(text, least(BLOCKS, rows)),
            pad_rows(video, least(BLOCKS, columns)),
            clip_chunk=self.config.similarity.chunk_size,
            dtype=self.model.dtype,
        )
        return scores[:rows, :columns]

    def explain(self, text: str, video: Video) -> Explanation:
        """What the score of a text and a video consists of: words, patches, frames, terms, taps.

        Raises UsageError as `check_query`, and DataError as `read_frames`.
        """
        self.check_query(text)
        images = self.read_frames(video)
        padded = self._padded_length(images)
        masked = self.config.similarity.mask_padding
        tokens = tokens_of(text)
        pair = Pair(
            model=self.model,
            text=self.encode_texts([text]),
            labels=labels_of(tokens, len(tokens) + 2 if masked else self.max_words),
            observed=self._observe(self._params_of_one_device, video_batch([images], padded)),
            num_frames=len(images) if masked else padded,
        )
        return explain(pair, query=text, video=segment_of(video), images=images)

    @functools.cached_property
    def _observe(self) -> Callable[[Any, VideoBatch], Observed]:
        return observer(self.model)

    @functools.cached_property
    def _params_of_one_device(self) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0), self.params)

    def _encode(self, function: Callable, batch: TextBatch | VideoBatch) -> Any:
        """The features of a batch of at most `batch_size` rows, computed with padding."""
        rows = num_rows(batch)
        features = function(self.params, pad_rows(batch, least(self._sizes, rows)))
        return jax.tree.map(lambda x: x[:rows], features)
