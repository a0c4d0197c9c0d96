"""Hierarchical token distillation (the paper's MPP, section 3.2).

A stage halves the tokens of every sample: convolve, score, cluster by DPC-KNN,
merge each cluster, and let the merged tokens attend to the tokens before merging.

The valid tokens of a sample come first; `count` is their number. Padding does not affect
valid tokens, so padding a clip further does not change the output.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from hvp_jax.models.layers import attention, by_row, layer_norm

HEADS = 8
NEIGHBOURS = 3
EPSILON = 1e-6
# Squared distances below this many machine epsilons of the norms are rounding error; the
# largest error observed, among 3,200 tokens, was 10.
ROUNDINGS = 64
HIGHEST = jax.lax.Precision.HIGHEST


def squared_distances(x: Float[Array, "b n d"]) -> Float[Array, "b n n"]:
    """Squared distances of all pairs of tokens: never negative, exactly 0 between equal tokens."""
    # One matrix product instead of a [B, N, N, D] difference. Between equal tokens (frames of a
    # still image) cancellation leaves only rounding error, which must not affect the clusters.
    product = jnp.einsum("bnd,bmd->bnm", x, x, precision=HIGHEST)
    norm = jnp.einsum("bnd,bnd->bn", x, x, precision=HIGHEST)
    norms = norm[:, :, None] + norm[:, None, :]
    squared = norms - 2 * product
    squared = jnp.where(squared > ROUNDINGS * jnp.finfo(x.dtype).eps * norms, squared, 0)
    return jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, squared)


def mean_of_smallest(values: Float[Array, "b n m"], k: int) -> Float[Array, "b m"]:
    """Mean of the k smallest finite values along axis 1.

    Each pass takes the next distinct value as often as it occurs. Passes of min and
    sum are several times faster than `top_k` on every backend.
    """
    total = jnp.zeros_like(values[:, 0])
    taken = jnp.zeros_like(total)
    last = jnp.full_like(total, -jnp.inf)
    for _ in range(k):
        rest = jnp.where(values > last[:, None], values, jnp.inf)
        last = rest.min(axis=1)
        occurrences = (rest == last[:, None]).sum(axis=1).astype(total.dtype)
        take = jnp.where(jnp.isfinite(last), jnp.minimum(occurrences, k - taken), 0)
        total += take * jnp.where(jnp.isfinite(last), last, 0)
        taken += take
    return total / jnp.maximum(taken, 1)


@jax.named_scope("cluster")
def dpc_knn_cluster(
    x: Float[Array, "b n d"],
    count: Int[Array, " b"],
    noise: Float[Array, "b n"] | None = None,
) -> tuple[Int[Array, "b n"], Int[Array, " b"]]:
    """Clusters tokens by DPC-KNN (Du et al., 2016; paper section 3.2), without a gradient.

    Returns the cluster index of every token and the number of clusters of each sample,
    max(ceil(count / 2), 1). Clusters are ordered by decreasing score of their centres.
    `noise` in [0, 1) breaks ties of density. Computed in at least float32.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    tokens = x.shape[1]
    valid = jnp.arange(tokens) < count[:, None]  # [B, N]
    both = valid[:, :, None] & valid[:, None, :]
    # What tokens have in common cancels in their distances, but its rounding errors would not: the
    # tokens of similar frames would all be equal in float32.
    mean = jnp.where(valid[:, :, None], x, 0).sum(axis=1) / jnp.maximum(count, 1)[:, None]
    squared = squared_distances(x - mean[:, None])
    squared /= x.shape[2]  # the paper divides distances by sqrt(d)
    near = jnp.where(both, squared, jnp.inf)

    density = jnp.exp(-mean_of_smallest(near, NEIGHBOURS))
    if noise is not None:
        density += EPSILON * noise
    # [B, N parent, N]: the matrix is symmetric, so reduce over the leading axis, which vectorises.
    # Among tokens of equal density the first counts as the denser, so that only one of several
    # equal tokens becomes a centre.
    first = jnp.arange(tokens)[:, None] < jnp.arange(tokens)
    parent, child = density[:, :, None], density[:, None, :]
    denser = (parent > child) | ((parent == child) & first)
    to_parent = jnp.where(denser, near, jnp.inf).min(axis=1)
    greatest = jnp.where(both, squared, 0).max(axis=(1, 2))[:, None]
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
    return jnp.argmin(to_centre, axis=1).astype(jnp.int32), clusters


@jax.named_scope("merge")
def merge_clusters(
    x: Float[Array, "b n d"],
    score: Float[Array, "b n"],
    clusters: Int[Array, "b n"],
    count: Int[Array, " b"],
    *,
    bias: Float[Array, ""] | float = 0.0,
) -> Float[Array, "b m d"]:
    """Mean of the tokens of each cluster, weighted by exp(score + bias) / (sum + 1e-6).

    To avoid overflow, numerator and denominator are divided by the greatest weight of the
    cluster. The bias, shared by all tokens, then remains only in the term of 1e-6, and its
    gradient is exact.
    """
    max_clusters = max((x.shape[1] + 1) // 2, 1)
    valid = jnp.arange(x.shape[1]) < count[:, None]
    member = (clusters[:, :, None] == jnp.arange(max_clusters)) & valid[:, :, None]  # [B, N, M]
    top = jnp.where(member, score[:, :, None], -jnp.inf).max(axis=1)  # [B, M]
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    # Outside the cluster the exponent could overflow: 0 keeps the gradient finite.
    exponent = jnp.where(member, score[:, :, None] - top[:, None], 0)
    weight = jnp.where(member, jnp.exp(exponent), 0)
    # At exp(80) the epsilon already dominates the sum of at most N; a larger one would overflow.
    total = weight.sum(axis=1) + EPSILON * jnp.exp(jnp.minimum(-top - bias, 80))
    merged = jnp.einsum("bnm,bnd->bmd", weight, x.astype(weight.dtype), precision=HIGHEST)
    return merged / total[:, :, None]


class TokenScore(nn.Module):
    """A linear score of each token, with the bias returned separately.

    A bias shared by all tokens cancels in every softmax. Added to the scores, it would
    accumulate the rounding errors of all their gradients, which in float32 exceed its own.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n"], Float[Array, ""]]:
        """Scores without the bias, and the bias."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 1))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return (x @ kernel)[..., 0], bias[0]


class DistillationStage(nn.Module):
    """One halving of the tokens."""

    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], count: Int[Array, " b"], noise: Float[Array, "b n"] | None
    ) -> tuple[Float[Array, "b m d"], Int[Array, " b"]]:
        """Tokens and their count -> merged tokens, m = ceil(n / 2), and their count."""
        width = x.shape[2]
        head = (HEADS, width // HEADS)
        valid = jnp.arange(x.shape[1]) < count[:, None]

        def dense(features, name, x):
            return by_row(nn.Dense(features, dtype=self.dtype, name=name), x)

        # Zero the padding, as the convolution's own padding at the ends is zero.
        x = jnp.where(valid[:, :, None], x, 0)
        conv = nn.Conv(width, (3,), padding=1, use_bias=False, dtype=self.dtype, name="conv")
        x = layer_norm("norm")(x + conv(x.astype(self.dtype)))  # at least float32
        score, score_bias = TokenScore(name="score")(x)  # [B, N], []

        clusters, merged_count = dpc_knn_cluster(x, count, noise)
        clusters = checkpoint_name(clusters, "clusters")
        merged = merge_clusters(x, score, clusters, count, bias=score_bias)
        self.sow("intermediates", "tokens", x)
        self.sow("intermediates", "scores", score + score_bias)
        self.sow("intermediates", "clusters", clusters)
        self.sow("intermediates", "merged", merged)

        norm = layer_norm("attention_norm")
        query = dense(width, "query", norm(merged).astype(self.dtype))
        key_value = dense(2 * width, "key_value", norm(x).astype(self.dtype))
        key, value = jnp.split(key_value, 2, axis=-1)
        query, key, value = (part.reshape(*part.shape[:2], *head) for part in (query, key, value))
        # The score of a token is added to its logits as a key; the bias cancels in the softmax.
        bias = jnp.where(valid, score, -jnp.inf)[:, None, None, :]
        y = attention(query, key, value, bias).reshape(merged.shape)
        return merged + dense(width, "attention_out", y), merged_count


class TokenDistillation(nn.Module):
    """All stages, with weights shared by the taps, which are stacked on the batch axis."""

    stages: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # save only a stage's input and clusters, none of its [N, N/2] arrays

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        count: Int[Array, " b"],
        key: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b m d"], Int[Array, " b"]]:
        """Tokens and their count -> distilled tokens and their count, halved by every stage.

        `key`: a random key for each sample, for the noise that breaks ties of density.
        """
        stage = DistillationStage
        if self.remat:
            keep = jax.checkpoint_policies.save_only_these_names("clusters")
            stage = nn.remat(DistillationStage, policy=keep)
        for i in range(self.stages):
            noise = None
            if key is not None:
                stage_key = jax.vmap(jax.random.fold_in, (0, None))(key, i)
                noise = jax.vmap(jax.random.uniform, (0, None))(stage_key, x.shape[1:2])
            x, count = stage(dtype=self.dtype, name=f"stage_{i}")(x, count, noise)
        return x, count
