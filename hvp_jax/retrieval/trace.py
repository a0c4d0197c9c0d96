"""Which patches of the frames every distilled token consists of, stage by stage.

A token consists of the patches that were merged into it. That it has seen others too, by the
convolution over neighbours and the attention of each stage, is left out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from hvp_jax.models.distillation.methods import CLUSTERING

GONE = -1  # in place of the number of a token: it was not kept


def trace(
    method: str,
    stages: Sequence[dict[str, np.ndarray]],
    count: int,
    taps: int,
) -> list[Int[np.ndarray, "l n"]]:
    """The token that each of `count` valid ones is in before and after every stage, at every tap.

    `stages` are the intermediates `clusters` and `scores` of each stage, arrays [taps, n].
    """
    current = np.tile(np.arange(count), (taps, 1))
    maps = [current]
    for arrays in stages:
        parents = _parents(method, arrays, count, taps)
        safe = np.maximum(current, 0)
        current = np.where(current >= 0, np.take_along_axis(parents, safe, axis=1), GONE)
        maps.append(current)
        count = halved(count)
    return maps


def halved(count: int) -> int:
    """The number of tokens that a stage keeps of `count`."""
    return max((count + 1) // 2, 1)


def _parents(
    method: str, arrays: dict[str, np.ndarray], count: int, taps: int
) -> Int[np.ndarray, "l n"]:
    """The token that each valid token of a stage's input becomes."""
    if method in CLUSTERING:
        return np.asarray(arrays["clusters"])
    if method == "average_pool":
        return np.tile(np.arange(count) // 2, (taps, 1))
    assert method == "top_score", method
    return np.stack([_kept(row[:count]) for row in arrays["scores"]])


def _kept(scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The new number of each token that is kept: the best half, in their own order."""
    best = np.sort(np.argsort(-scores, kind="stable")[: halved(len(scores))])
    parents = np.full(len(scores), GONE)
    parents[best] = np.arange(len(best))
    return parents
