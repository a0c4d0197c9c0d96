"""Hierarchical token distillation (the paper's MPP, section 3.2).

A stage halves the tokens of every sample: convolve, score, cluster by DPC-KNN,
merge each cluster, and let the merged tokens attend to what they were merged from.

Valid tokens always come first in a sample; `count` [B] says how many. Nothing
beyond them touches what is valid, so padding a clip further changes no output.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hvp_jax.models.layers import attention, by_row, layer_norm

HEADS = 8
NEIGHBOURS = 3
EPSILON = 1e-6
ROUNDINGS = 64  # roundings a squared distance may be off by; 10 were seen, of 3,200 tokens
HIGHEST = jax.lax.Precision.HIGHEST


def squared_distances(x: jax.Array) -> jax.Array:
    """[B, N, D] -> [B, N, N], never negative, exactly 0 between tokens that are alike."""
    # One matrix product instead of a [B, N, N, D] difference. What the cancellation leaves
    # of the distance of twins (frames of a still) is rounding, and must decide nothing.
    product = jnp.einsum("bnd,bmd->bnm", x, x, precision=HIGHEST)
    norm = jnp.einsum("bnd,bnd->bn", x, x, precision=HIGHEST)
    norms = norm[:, :, None] + norm[:, None, :]
    squared = norms - 2 * product
    squared = jnp.where(squared > ROUNDINGS * jnp.finfo(x.dtype).eps * norms, squared, 0)
    return jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, squared)


def mean_of_smallest(values: jax.Array, k: int) -> jax.Array:
    """Mean of the k smallest finite values of the first axis but one: [B, N, M] -> [B, M].

    Each pass takes the next distinct value as often as it occurs. Passes of min and
    sum are several times faster than `top_k` on every backend.
    """
    total = jnp.zeros_like(values[:, 0])
    taken = jnp.zeros_like(total)
    last = jnp.full_like(total, -jnp.inf)
    for _ in range(k):
        rest = jnp.where(values > last[:, None], values, jnp.inf)
        last = rest.min(axis=1)
        occurs = (rest == last[:, None]).sum(axis=1).astype(total.dtype)
        take = jnp.where(jnp.isfinite(last), jnp.minimum(occurs, k - taken), 0)
        total += take * jnp.where(jnp.isfinite(last), last, 0)
        taken += take
    return total / jnp.maximum(taken, 1)


def dpc_knn_cluster(
    x: jax.Array, count: jax.Array, noise: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """DPC-KNN: [B, N, D], valid tokens [B], noise [B, N] in [0, 1) -> clusters, their count.

    Returns the cluster of every token [B, N], clusters being numbered by falling centre
    score, and how many clusters each sample has [B]: max(ceil(count / 2), 1). Runs in
    float32 or better and outside the gradient (Du et al., 2016; paper section 3.2).
    """
    x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    tokens = x.shape[1]
    valid = jnp.arange(tokens) < count[:, None]  # [B, N]
    both = valid[:, :, None] & valid[:, None, :]
    squared = squared_distances(x) / x.shape[2]  # d² of the paper's scaled distance
    near = jnp.where(both, squared, jnp.inf)

    density = jnp.exp(-mean_of_smallest(near, NEIGHBOURS))
    if noise is not None:
        density += EPSILON * noise
    # [B, N parent, N]: the matrix is symmetric, so reduce over the leading axis, which vectorises.
    # Of equals the first is the denser, so that one of several twins is a centre, not all.
    first = jnp.arange(tokens)[:, None] < jnp.arange(tokens)
    of, to = density[:, :, None], density[:, None, :]
    denser = (of > to) | ((of == to) & first)
    parent = jnp.where(denser, near, jnp.inf).min(axis=1)
    greatest = jnp.where(both, squared, 0).max(axis=(1, 2))[:, None]
    parent = jnp.sqrt(jnp.where(jnp.isfinite(parent), parent, greatest))

    most = max((tokens + 1) // 2, 1)
    clusters = jnp.maximum((count + 1) // 2, 1)
    _, centres = jax.lax.top_k(jnp.where(valid, density * parent, -jnp.inf), most)  # [B, M]
    alive = jnp.arange(most) < clusters[:, None]
    to_centre = jnp.take_along_axis(near, centres[:, :, None], axis=1)  # [B, M, N]
    # A centre joins itself, even where a twin at distance 0 has a lower number.
    own = centres[:, :, None] == jnp.arange(tokens)
    to_centre = jnp.where(own, -1, to_centre)
    to_centre = jnp.where(alive[:, :, None], to_centre, jnp.inf)
    return jnp.argmin(to_centre, axis=1).astype(jnp.int32), clusters


def merge_clusters(
    x: jax.Array,
    score: jax.Array,
    clusters: jax.Array,
    count: jax.Array,
    bias: jax.Array | float = 0.0,
) -> jax.Array:
    """Mean of each cluster weighted by exp(score + bias), the bias one number for all.

    [B, N, D], [B, N], [B, N], [B] -> [B, M, D]. The weights are exp(score + bias) /
    (sum + 1e-6) for any score, without overflow: both are divided by the greatest weight
    of the cluster. All but the 1e-6 is free of the bias, and so is its gradient, exactly.
    """
    most = max((x.shape[1] + 1) // 2, 1)
    valid = jnp.arange(x.shape[1]) < count[:, None]
    member = (clusters[:, :, None] == jnp.arange(most)) & valid[:, :, None]  # [B, N, M]
    top = jnp.where(member, score[:, :, None], -jnp.inf).max(axis=1)  # [B, M]
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    # Where a token is no member the exponent could be anything: 0 keeps the gradient finite.
    exponent = jnp.where(member, score[:, :, None] - top[:, None], 0)
    weight = jnp.where(member, jnp.exp(exponent), 0)
    # exp(80) times epsilon already drowns a weight of at most N; more would overflow.
    total = weight.sum(axis=1) + EPSILON * jnp.exp(jnp.minimum(-top - bias, 80))
    merged = jnp.einsum("bnm,bnd->bmd", weight, x.astype(weight.dtype), precision=HIGHEST)
    return merged / total[:, :, None]


class TokenScore(nn.Module):
    """A linear score of each token, with its bias apart.

    The same bias for all tokens cancels in every softmax. Left in the sum, it would get
    the rounding errors of all their gradients, which in float32 are greater than its own.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, N, D] -> [B, N] without the bias, and the bias []."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 1))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return (x @ kernel)[..., 0], bias[0]


class DistillationStage(nn.Module):
    """One halving of the tokens."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, count: jax.Array, noise: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """[B, N, D], valid [B], noise [B, N] -> merged tokens [B, ceil(N/2), D], valid [B]."""
        width = x.shape[2]
        head = (HEADS, width // HEADS)
        valid = jnp.arange(x.shape[1]) < count[:, None]

        def dense(features, name, x):
            return by_row(nn.Dense(features, dtype=self.dtype, name=name), x)

        # The convolution pads with zeros at the ends: what lies past the last valid token is one.
        x = jnp.where(valid[:, :, None], x, 0)
        conv = nn.Conv(width, (3,), padding=1, use_bias=False, dtype=self.dtype, name="conv")
        x = layer_norm("norm")(x + conv(x.astype(self.dtype)))  # float32 or better
        score, score_bias = TokenScore(name="score")(x)  # [B, N], []

        clusters, merged_count = dpc_knn_cluster(x, count, noise)
        clusters = checkpoint_name(clusters, "clusters")
        merged = merge_clusters(x, score, clusters, count, score_bias)
        self.sow("intermediates", "tokens", x)
        self.sow("intermediates", "scores", score + score_bias)
        self.sow("intermediates", "clusters", clusters)
        self.sow("intermediates", "merged", merged)

        norm = layer_norm("attention_norm")
        query = dense(width, "query", norm(merged).astype(self.dtype))
        key_value = dense(2 * width, "key_value", norm(x).astype(self.dtype))
        key, value = jnp.split(key_value, 2, axis=-1)
        query, key, value = (part.reshape(*part.shape[:2], *head) for part in (query, key, value))
        # The score of a token is added to its logits as a key; a softmax ignores the bias.
        bias = jnp.where(valid, score, -jnp.inf)[:, None, None, :]
        y = attention(query, key, value, bias).reshape(merged.shape)
        return merged + dense(width, "attention_out", y), merged_count


class TokenDistillation(nn.Module):
    """The hierarchy: one set of weights for all taps, which come stacked on the batch."""

    stages: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # keep a stage's input and clusters alone, and none of its [N, N/2] arrays

    @nn.compact
    def __call__(
        self, x: jax.Array, count: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """[B, N, D], valid tokens [B] -> salient tokens [B, M, D], valid [B]; M halves a stage.

        `key`: one random key a sample [B], for the noise that breaks ties of density.
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
            x, count = stage(self.dtype, name=f"stage_{i}")(x, count, noise)
        return x, count
