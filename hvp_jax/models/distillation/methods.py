"""How a stage halves the tokens of every sample. All methods keep max(ceil(count / 2), 1) of them.

`dpc_knn` (the paper's) and `kmeans` merge clusters, `average_pool` merges neighbours, and
`top_score` keeps some tokens as they are. Padding does not affect the tokens that are kept.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from hvp_jax.models.distillation.clustering import (
    HIGHEST,
    ROUNDINGS,
    dpc_knn_cluster,
    map_groups,
    merge_clusters,
)

CLUSTERING = ("dpc_knn", "kmeans")  # the methods that merge by weights from the tokens' scores
SCORED = (*CLUSTERING, "top_score")  # the methods that need the tokens' scores
ITERATIONS = 5  # of Lloyd's algorithm


def halved(count: Int[Array, " b"]) -> Int[Array, " b"]:
    """The number of tokens that a stage keeps of `count`."""
    return jnp.maximum((count + 1) // 2, 1)


def cluster(
    method: str,
    x: Float[Array, "b n d"],
    count: Int[Array, " b"],
    noise: Float[Array, "b n"] | None = None,
    *,
    group: int | None = None,
) -> Int[Array, "b n"]:
    """The cluster of every token by a method of CLUSTERING, without a gradient."""
    if method == "kmeans":
        return kmeans_cluster(x, count, group=group)
    return dpc_knn_cluster(x, count, noise, group=group)[0]


def halve(
    method: str,
    x: Float[Array, "b n d"],
    score: Float[Array, "b n"] | None,
    count: Int[Array, " b"],
    clusters: Int[Array, "b n"] | None,
    *,
    bias: Float[Array, ""] | float = 0.0,
    group: int | None = None,
) -> Float[Array, "b m d"]:
    """The tokens that are kept, m = ceil(n / 2); `bias` is that of the scores.

    The methods of CLUSTERING need `clusters`, and those of SCORED `score`.
    """
    if method in CLUSTERING:
        assert score is not None and clusters is not None, f"{method} merges clusters by scores"
        return merge_clusters(x, score, clusters, count, bias=bias, group=group)
    if method == "top_score":
        assert score is not None, "top_score chooses by scores"
        return keep_best(x, score, count)
    assert method == "average_pool", method
    return average_neighbours(x, count)


@jax.named_scope("keep_best")
def keep_best(
    x: Float[Array, "b n d"], score: Float[Array, "b n"], count: Int[Array, " b"]
) -> Float[Array, "b m d"]:
    """The half of the tokens with the greatest scores, in their own order; padding becomes 0."""
    tokens = x.shape[1]
    valid = jnp.arange(tokens) < count[:, None]
    kept = max((tokens + 1) // 2, 1)
    score = jnp.where(valid, jax.lax.stop_gradient(score), -jnp.inf)
    _, best = jax.lax.top_k(score, kept)  # the valid ones first
    exists = jnp.arange(kept) < halved(count)[:, None]
    order = jnp.sort(jnp.where(exists, best, tokens), axis=1)
    order = checkpoint_name(order, "clusters")  # as small as the labels of clusters
    rows = jnp.take_along_axis(x, jnp.minimum(order, tokens - 1)[:, :, None], axis=1)
    return jnp.where(exists[:, :, None], rows, 0)


@jax.named_scope("average_neighbours")
def average_neighbours(x: Float[Array, "b n d"], count: Int[Array, " b"]) -> Float[Array, "b m d"]:
    """The mean of tokens 0 and 1, 2 and 3, ...; the last of an odd number stays as it is."""
    valid = jnp.arange(x.shape[1]) < count[:, None]
    odd = x.shape[1] % 2
    x = jnp.pad(jnp.where(valid[:, :, None], x, 0), [(0, 0), (0, odd), (0, 0)])
    valid = jnp.pad(valid, [(0, 0), (0, odd)])
    size = valid.reshape(len(x), -1, 2).sum(axis=2)
    pairs = x.reshape(len(x), -1, 2, x.shape[2]).sum(axis=2)
    return pairs / jnp.maximum(size, 1)[:, :, None].astype(x.dtype)


@jax.named_scope("cluster")
def kmeans_cluster(
    x: Float[Array, "b n d"], count: Int[Array, " b"], *, group: int | None = None
) -> Int[Array, "b n"]:
    """Lloyd's algorithm from evenly spaced tokens, without a gradient, in at least float32.

    A sample has max(ceil(count / 2), 1) clusters, none of which is empty.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    return map_groups(kmeans_group, x.shape[1] ** 2, x, jnp.asarray(count), group=group)


def kmeans_group(x: Float[Array, "b n d"], count: Int[Array, " b"]) -> Int[Array, "b n"]:
    """The cluster of every token of some samples, with arrays [B, M, N]."""
    tokens = x.shape[1]
    max_clusters = max((tokens + 1) // 2, 1)
    valid = jnp.arange(tokens) < count[:, None]
    # As in `cluster_group`: what tokens have in common would only round their distances.
    mean = jnp.where(valid[:, :, None], x, 0).sum(axis=1) / jnp.maximum(count, 1)[:, None]
    x = jnp.where(valid[:, :, None], x - mean[:, None], 0)
    clusters = halved(count)[:, None]
    index = jnp.arange(max_clusters)
    exists = index < clusters
    first = jnp.minimum(index * count[:, None] // clusters, tokens - 1)
    centroids = jnp.take_along_axis(x, first[:, :, None], axis=1)

    def step(_, labels):
        member = (labels[:, None] == index[:, None]) & valid[:, None]  # [B, M, N]
        total = jnp.einsum("bmn,bnd->bmd", member.astype(x.dtype), x, precision=HIGHEST)
        return assign(x, total / jnp.maximum(member.sum(axis=2), 1)[:, :, None], valid, exists)

    return jax.lax.fori_loop(0, ITERATIONS, step, assign(x, centroids, valid, exists))


def assign(
    x: Float[Array, "b n d"],
    centroids: Float[Array, "b m d"],
    valid: Bool[Array, "b n"],
    exists: Bool[Array, "b m"],
) -> Int[Array, "b n"]:
    """The nearest centroid of every valid token; a centroid without tokens then takes one.

    It takes the token farthest from its centroid, of those that are not the nearest to theirs:
    there is always one, and its cluster keeps a token.
    """
    tokens, max_clusters = x.shape[1], centroids.shape[1]
    index = jnp.arange(max_clusters)[:, None]
    product = jnp.einsum("bmd,bnd->bmn", centroids, x, precision=HIGHEST)
    norms = jnp.square(centroids).sum(2)[:, :, None] + jnp.square(x).sum(2)[:, None]
    squared = norms - 2 * product
    # As in `squared_distances`: rounding must not decide between equal centroids.
    squared = jnp.where(squared >= ROUNDINGS * jnp.finfo(x.dtype).eps * norms, squared, 0)
    squared = jnp.where(exists[:, :, None], squared, jnp.inf)
    least = squared.min(axis=1, keepdims=True)
    labels = jnp.where(squared == least, index, max_clusters).min(axis=1)  # [B, N]

    member = (labels[:, None] == index) & valid[:, None]  # [B, M, N]
    empty = exists & ~member.any(axis=2)  # [B, M]
    inside = jnp.where(member, squared, jnp.inf)
    nearest = jnp.argmin(inside, axis=2)  # [B, M]
    stays = ((nearest[:, :, None] == jnp.arange(tokens)) & member).any(axis=1)
    distance = jnp.where(valid & ~stays, least[:, 0], -jnp.inf)
    _, farthest = jax.lax.top_k(distance, max_clusters)
    rank = jnp.maximum(jnp.cumsum(empty, axis=1) - 1, 0)  # of an empty cluster
    taken = jnp.take_along_axis(farthest, rank, axis=1)  # [B, M]
    takes = (taken[:, :, None] == jnp.arange(tokens)) & empty[:, :, None]  # [B, M, N]
    return jnp.where(takes.any(axis=1), jnp.argmax(takes, axis=1), labels)
