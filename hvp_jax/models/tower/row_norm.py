"""Layer norm of the rows of a matrix, without scale and bias, in parts.

The statistics can be computed where a row is written, and kept for the gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5  # CLIP's


class RowStats(NamedTuple):
    """Mean of every row, and the inverse of its standard deviation; float32."""

    mean: jax.Array  # [rows]
    inverse: jax.Array  # [rows]


def row_stats(x: Float[Array, "rows width"]) -> RowStats:
    """Mean and inverse standard deviation of every row, in float32.

    One pass for bfloat16: the error of E[x²] - E[x]² is far below the rounding of x itself.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=1)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.square(wide).mean(axis=1) - jnp.square(mean), 0)
    else:
        variance = jnp.square(wide - mean[:, None]).mean(axis=1)
    return RowStats(mean, jax.lax.rsqrt(variance + EPSILON))


def normalize_rows(x: Float[Array, "rows width"], stats: RowStats) -> Float[Array, "rows width"]:
    """Layer norm without scale and bias, in float32."""
    return (x.astype(jnp.float32) - stats.mean[:, None]) * stats.inverse[:, None]


def normalize_rows_gradient(
    x: Float[Array, "rows width"], stats: RowStats, grad: Float[Array, "rows width"]
) -> Float[Array, "rows width"]:
    """The gradient of `x` from that of `normalize_rows`, through the statistics too."""
    normed, grad = normalize_rows(x, stats), grad.astype(jnp.float32)
    along = (grad * normed).mean(axis=1, keepdims=True)
    return (grad - grad.mean(axis=1, keepdims=True) - normed * along) * stats.inverse[:, None]
