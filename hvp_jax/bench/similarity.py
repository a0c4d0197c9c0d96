"""`bench --config.bench=similarity`: the score matrix of a gallery."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.bench.timing import Measurement, measure, peak_memory_mib, seconds
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, l2_normalize

GALLERY = 200  # number of texts, and of clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityResult(Measurement, BenchResult):
    compile_s: float
    pairs_per_s: float = dataclasses.field(metadata={"json": "pairs/s"})
    peak_memory_mib: float | None = dataclasses.field(metadata={"json": "peak_memory_MiB"})


def bench_similarity(config: ConfigDict, model: HVPNet) -> SimilarityResult:
    """Times the scores of all texts and clips from random features, without the encoders."""
    s, words, taps = model.clip_config, config.data.max_words, len(model.taps)
    tokens = config.data.max_frames * ((s.image_size // s.patch_size) ** 2 + 1)
    for _ in range(model.stages):
        tokens = (tokens + 1) // 2
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def features(*shape: int) -> Any:  # NumPy, as the scorer keeps features on the host
        return np.asarray(
            l2_normalize(jax.random.normal(next(keys), (GALLERY, *shape, s.embed_dim)))
        )

    def token_weights(*shape: int) -> Any:
        return np.asarray(jax.random.uniform(next(keys), (GALLERY, *shape)))

    text = TextFeatures(features(words), token_weights(words), features())
    video = VideoFeatures(
        features(taps, tokens), token_weights(taps, tokens), features(taps), features(taps)
    )
    work = functools.partial(
        score_matrix, text, video, clip_chunk=config.similarity.chunk_size, dtype=model.dtype
    )
    first = seconds(work)
    operations = taps * flops.word_patch(GALLERY, words, GALLERY, tokens, width=s.embed_dim)
    operations += 2 * taps * 2.0 * GALLERY**2 * s.embed_dim
    measured = measure(work, operations, model.dtype)
    return SimilarityResult(
        **describe_run(config),
        **vars(measured),
        compile_s=first - measured.ms / 1000,
        pairs_per_s=GALLERY**2 * 1000 / measured.ms,
        peak_memory_mib=peak_memory_mib(jax.devices()[:1]),
    )
