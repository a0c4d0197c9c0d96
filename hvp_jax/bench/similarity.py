"""`bench --config.bench=similarity`: the score matrix of a gallery."""

import dataclasses
import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from hvp_jax.bench.memory import feature_shapes
from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.bench.timing import Measurement, measure, peak_memory_mib, seconds
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import l2_normalize

GALLERY = 200  # number of texts, and of clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityResult(Measurement, BenchResult):
    compile_s: float
    pairs_per_s: float = dataclasses.field(metadata={"json": "pairs/s"})
    peak_memory_mib: float | None = dataclasses.field(metadata={"json": "peak_memory_MiB"})


def bench_similarity(config: ConfigDict, model: HVPNet) -> SimilarityResult:
    """Times the scores of all texts and clips from random features, without the encoders."""
    frames, words = config.data.max_frames, config.data.max_words
    text, video, _ = feature_shapes(model, GALLERY, frames, words)
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def features(x: jax.ShapeDtypeStruct) -> np.ndarray:
        # NumPy, as the scorer keeps features on the host. The time does not depend on the values.
        return np.asarray(l2_normalize(jax.random.normal(next(keys), x.shape, x.dtype)))

    text, video = jax.tree.map(features, (text, video))
    work = functools.partial(
        score_matrix, text, video, clip_chunk=config.similarity.chunk_size, dtype=model.dtype
    )
    first = seconds(work)
    operations = flops.scoring(model, GALLERY, GALLERY, frames, words)
    measured = measure(work, operations, model.dtype)
    return SimilarityResult(
        **describe_run(config),
        **vars(measured),
        compile_s=first - measured.ms / 1000,
        pairs_per_s=GALLERY**2 * 1000 / measured.ms,
        peak_memory_mib=peak_memory_mib(jax.devices()[:1]),
    )
