"""`bench --config.bench=similarity`: the scores of a gallery."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from hvp_jax.bench.timing import measure, seconds
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, l2_normalize
from hvp_jax.monitoring.throughput import peak_memory

GALLERY = 200  # texts, and clips, of the scoring


def bench_similarity(config: ConfigDict, model: HVPNet) -> dict:
    """The scores of 200 texts and 200 clips from features that are there already."""
    s, words, taps = model.clip_config, config.data.max_words, len(model.taps)
    tokens = config.data.max_frames * ((s.image_size // s.patch_size) ** 2 + 1)
    for _ in range(model.stages):
        tokens = (tokens + 1) // 2
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def features(*shape):
        return np.asarray(
            l2_normalize(jax.random.normal(next(keys), (GALLERY, *shape, s.embed_dim)))
        )

    def token_weights(*shape):
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
    result = measure(work, operations, model.dtype)
    return result | {
        "compile_s": first - result["ms"] / 1000,
        "pairs/s": GALLERY**2 * 1000 / result["ms"],
        "peak_memory_MiB": (peak_memory(jax.devices()[:1]) or 0) / 2**20,
    }
