"""DPC-KNN clustering of tokens and the merging of clusters, sample by sample.

Arrays over pairs of tokens are built for a group of samples at a time: they would otherwise
grow with the batch, and on a TPU those of one group stay in the chip's fast memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEIGHBOURS = 3
EPSILON = 1e-6
# Squared distances below this many machine epsilons of the norms are rounding error; the
# largest error observed, among 3,200 tokens, was 10.
ROUNDINGS = 64
HIGHEST = jax.lax.Precision.HIGHEST
# Pairs of a group of rows, unless a single row has more: so few that they stay in a CPU's caches,
# and so many that an accelerator is busy, with arrays of 128 MiB.
GROUP = 1 << 19
ACCELERATOR_GROUP = 1 << 25


def map_groups(
    rows: Callable, pairs: int, *arrays: jax.Array, group: int | None = None
) -> jax.Array:
    """`rows(*arrays)` computed for groups of rows of the leading axis, one group after the other.

    `pairs`: the elements of the largest array that `rows` builds for one row, of which a group
    has at most `group`; None: `GROUP`.
    """
    batch = arrays[0].shape[0]
    fits = max((group or GROUP) // max(pairs, 1), 1)
    size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= fits) if batch else 0
    if size == batch:
        return rows(*arrays)
    grouped = [x.reshape(batch // size, size, *x.shape[1:]) for x in arrays]
    out = jax.lax.map(lambda group: rows(*group), grouped)
    return out.reshape(batch, *out.shape[2:])


def squared_distances(
    x: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None
) -> Float[Array, "b n n"]:
    """Squared distances of all pairs of tokens: never negative, exactly 0 between equal tokens.

    Those of a token that is not `valid`, which must be finite, are infinite, also to itself.
    """
    # One matrix product instead of a [B, N, N, D] difference. Between equal tokens (frames of a
    # still image) cancellation leaves only rounding error, which must not affect the clusters.
    product = jnp.einsum("bnd,bmd->bnm", x, x, precision=HIGHEST)
    norm = jnp.einsum("bnd,bnd->bn", x, x, precision=HIGHEST)
    if valid is not None:
        norm = jnp.where(valid, norm, jnp.inf)
    norms = norm[:, :, None] + norm[:, None, :]
    squared = norms - 2 * product
    squared = jnp.where(squared >= ROUNDINGS * jnp.finfo(x.dtype).eps * norms, squared, 0)
    return jnp.where(jnp.eye(x.shape[1], dtype=bool) & jnp.isfinite(norms), 0, squared)


def mean_of_smallest(values: Float[Array, "b n m"], k: int) -> Float[Array, "b m"]:
    """Mean of the k smallest finite values along axis 1.

    Each pass takes the next distinct value as often as it occurs. Passes of min and
    sum are several times faster than `top_k` on every backend.
    """
    total = jnp.zeros_like(values[:, 0])
    taken = jnp.zeros_like(total)
    last = jnp.full_like(total, -jnp.inf)
    for i in range(k):
        rest = jnp.where(values > last[:, None], values, jnp.inf)
        last = rest.min(axis=1)
        take = k - taken
        if i < k - 1:  # in the last pass at most one is left to take
            occurrences = (values == last[:, None]).sum(axis=1).astype(total.dtype)
            take = jnp.minimum(occurrences, take)
        take = jnp.where(jnp.isfinite(last), take, 0)
        total += take * jnp.where(jnp.isfinite(last), last, 0)
        taken += take
    return total / jnp.maximum(taken, 1)


def cluster_group(
    x: Float[Array, "b n d"],
    count: Int[Array, " b"],
    noise: Float[Array, "b n"] | None = None,
) -> Int[Array, "b n"]:
    """The cluster of every token of some samples, with arrays [B, N, N]."""
    tokens = x.shape[1]
    valid = jnp.arange(tokens) < count[:, None]  # [B, N]
    # What tokens have in common cancels in their distances, but its rounding errors would not: the
    # tokens of similar frames would all be equal in float32.
    mean = jnp.where(valid[:, :, None], x, 0).sum(axis=1) / jnp.maximum(count, 1)[:, None]
    x = jnp.where(valid[:, :, None], x - mean[:, None], 0)
    squared = squared_distances(x, valid) / x.shape[2]  # the paper divides distances by sqrt(d)
    # Every token is its own nearest, at a distance of 0: only the others are searched.
    near = jnp.where(jnp.eye(tokens, dtype=bool), jnp.inf, squared)
    others = jnp.clip(count - 1, 0, NEIGHBOURS - 1)[:, None]
    mean_of_nearest = mean_of_smallest(near, NEIGHBOURS - 1) * others / (others + 1)

    density = jnp.exp(-mean_of_nearest)
    if noise is not None:
        density += EPSILON * noise
    # [B, N parent, N]: the matrix is symmetric, so reduce over the leading axis, which vectorises.
    # Among tokens of equal density the first counts as the denser, so that only one of several
    # equal tokens becomes a centre.
    first = jnp.arange(tokens)[:, None] < jnp.arange(tokens)
    parent, child = density[:, :, None], density[:, None, :]
    denser = (parent > child) | ((parent == child) & first)
    to_parent = jnp.where(denser, near, jnp.inf).min(axis=1)
    greatest = jnp.where(jnp.isfinite(near), near, 0).max(axis=(1, 2))[:, None]
    to_parent = jnp.sqrt(jnp.where(jnp.isfinite(to_parent), to_parent, greatest))

    max_clusters = max((tokens + 1) // 2, 1)
    clusters = jnp.maximum((count + 1) // 2, 1)
    centre_score = jnp.where(valid, density * to_parent, -jnp.inf)
    _, centres = jax.lax.top_k(centre_score, max_clusters)  # [B, M]
    exists = jnp.arange(max_clusters) < clusters[:, None]
    to_centre = jnp.take_along_axis(near, centres[:, :, None], axis=1)  # [B, M, N]
    # A centre joins its own cluster, even if an equal token is the centre of an earlier one.
    own = centres[:, :, None] == jnp.arange(tokens)
    to_centre = jnp.where(own, -1, to_centre)
    to_centre = jnp.where(exists[:, :, None], to_centre, jnp.inf)
    # The first of the smallest: two reductions that vectorise on a CPU, unlike `argmin`.
    smallest = to_centre == to_centre.min(axis=1, keepdims=True)
    index = jnp.arange(max_clusters, dtype=jnp.int32)[:, None]
    return jnp.where(smallest, index, max_clusters).min(axis=1)


@jax.named_scope("cluster")
def dpc_knn_cluster(
    x: Float[Array, "b n d"],
    count: Int[Array, " b"],
    noise: Float[Array, "b n"] | None = None,
    *,
    group: int | None = None,
) -> tuple[Int[Array, "b n"], Int[Array, " b"]]:
    """Clusters tokens by DPC-KNN (Du et al., 2016; paper section 3.2), without a gradient.

    Returns the cluster index of every token and the number of clusters of each sample,
    max(ceil(count / 2), 1). Clusters are ordered by decreasing score of their centres.
    `noise` in [0, 1) breaks ties of density. Computed in at least float32.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    count = jnp.asarray(count)
    arrays = (x, count) if noise is None else (x, count, noise)
    labels = map_groups(cluster_group, x.shape[1] ** 2, *arrays, group=group)
    return labels, jnp.maximum((count + 1) // 2, 1)


def sum_by_product(
    values: Float[Array, "b n d"],
    clusters: Int[Array, "b n"],
    max_clusters: int,
    group: int | None = None,
) -> Float[Array, "b m d"]:
    """Sums of clusters as a matrix product with 0 and 1."""

    def rows(values, clusters):
        member = clusters[:, None, :] == jnp.arange(max_clusters)[:, None]  # [B, M, N]
        return jnp.einsum("bmn,bnd->bmd", member.astype(values.dtype), values, precision=HIGHEST)

    pairs = values.shape[1] * max_clusters
    return map_groups(rows, pairs, values, clusters, group=group)


def sum_by_scatter(
    values: Float[Array, "b n d"], clusters: Int[Array, "b n"], max_clusters: int
) -> Float[Array, "b m d"]:
    """Sums of clusters token by token."""
    rows = jnp.arange(len(values))[:, None]
    index = jnp.where(clusters < 0, max_clusters, clusters)  # out of range: dropped
    total = jnp.zeros((len(values), max_clusters, values.shape[2]), values.dtype)
    return total.at[rows, index].add(values, mode="drop")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def sum_clusters(
    values: Float[Array, "b n d"],
    clusters: Int[Array, "b n"],
    max_clusters: int,
    group: int | None = None,
) -> Float[Array, "b m d"]:
    """Sums of each cluster's tokens; a token of cluster -1 is in none."""
    # A CPU adds one token at a time seven times faster than it multiplies; accelerators multiply
    # faster, and a GPU would add in a random order.
    return jax.lax.platform_dependent(
        values,
        clusters,
        cpu=functools.partial(sum_by_scatter, max_clusters=max_clusters),
        default=functools.partial(sum_by_product, max_clusters=max_clusters, group=group),
    )


def _sum_forward(values, clusters, max_clusters, group):
    return sum_clusters(values, clusters, max_clusters, group), clusters


def _sum_backward(max_clusters, group, clusters, gradient):
    # A gather, where the gradient of the product would be another product.
    gathered = jnp.take_along_axis(gradient, jnp.maximum(clusters, 0)[:, :, None], axis=1)
    return jnp.where(clusters[:, :, None] >= 0, gathered, 0), None


sum_clusters.defvjp(_sum_forward, _sum_backward)


@jax.named_scope("merge")
def merge_clusters(
    x: Float[Array, "b n d"],
    score: Float[Array, "b n"],
    clusters: Int[Array, "b n"],
    count: Int[Array, " b"],
    *,
    bias: Float[Array, ""] | float = 0.0,
    group: int | None = None,
) -> Float[Array, "b m d"]:
    """Mean of the tokens of each cluster, weighted by exp(score + bias) / (sum + 1e-6).

    To avoid overflow, numerator and denominator are divided by the greatest weight of the
    cluster. The bias, shared by all tokens, then remains only in the term of 1e-6, and its
    gradient is exact.
    """
    max_clusters = max((x.shape[1] + 1) // 2, 1)
    clusters = jnp.where(jnp.arange(x.shape[1]) < count[:, None], clusters, -1)

    def greatest(score, clusters):
        member = clusters[:, :, None] == jnp.arange(max_clusters)  # [B, N, M]
        return jnp.where(member, score[:, :, None], -jnp.inf).max(axis=1)

    score = jnp.asarray(score)
    pairs = x.shape[1] * max_clusters
    top = map_groups(greatest, pairs, jax.lax.stop_gradient(score), clusters, group=group)  # [B, M]
    top = jnp.where(jnp.isfinite(top), top, 0)
    own = jnp.take_along_axis(top, jnp.maximum(clusters, 0), axis=1)
    # Padding could overflow the exponent: 0 keeps the gradient finite.
    weight = jnp.exp(jnp.where(clusters >= 0, score - own, 0))[:, :, None]  # [B, N, 1]
    total = sum_clusters(weight, clusters, max_clusters, group)
    merged = sum_clusters(weight * x.astype(weight.dtype), clusters, max_clusters, group)
    # At exp(80) the epsilon already dominates the sum of at most N; a larger one would overflow.
    return merged / (total + EPSILON * jnp.exp(jnp.minimum(-top - bias, 80))[:, :, None])
