"""Hierarchical token distillation (the paper's MPP, section 3.2).

A stage halves the tokens of every sample: convolve, score, cluster by DPC-KNN,
merge each cluster, and let the merged tokens attend to the tokens before merging.
`methods.py` has other ways to halve them.

The valid tokens of a sample come first; `count` is their number. Padding does not affect
valid tokens, so padding a clip further does not change the output.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from hvp_jax.models.distillation import methods
from hvp_jax.models.distillation.clustering import map_groups
from hvp_jax.models.layers import attention, by_row, layer_norm

HEADS = 8


def grouped_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b n h d"],
    value: Float[Array, "b n h d"],
    bias: Float[Array, "b n"],
    group: int | None = None,
) -> Float[Array, "b q h d"]:
    """`attention` by groups of heads of a sample; the backward pass computes the weights again.

    Together the weights [B, H, Q, N] would need more memory than all else.
    """
    batch, queries, heads, _ = query.shape

    def rows(x):  # [B, N, H, D] -> [B H, N, 1, D]
        x = x.swapaxes(1, 2)
        return x.reshape(-1, x.shape[2], 1, x.shape[3])

    bias = jnp.repeat(bias, heads, axis=0)[:, None, None]
    pairs = queries * key.shape[1]
    arrays = rows(query), rows(key), rows(value), bias
    y = map_groups(jax.checkpoint(attention), pairs, *arrays, group=group)
    return y.reshape(batch, heads, queries, -1).swapaxes(1, 2)


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


class PartedDense(nn.Module):
    """Dense layers of one input whose weights are side by side, as nn.Dense would have them.

    Each output is an array of its own: to split a product would copy it.
    """

    features: int
    parts: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> list[Float[Array, "b n features"]]:
        shape = (x.shape[-1], self.parts * self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)

        def part(weights: Array, bias: Array) -> Array:
            return by_row(lambda rows: rows @ weights + bias, x)

        kernels, biases = jnp.split(kernel, self.parts, axis=1), jnp.split(bias, self.parts)
        return [part(*pair) for pair in zip(kernels, biases, strict=True)]


class DistillationStage(nn.Module):
    """One halving of the tokens. What is switched off has no parameters."""

    dtype: DTypeLike
    fused: bool
    group: int | None
    method: str = "dpc_knn"  # of `methods.py`
    attention: bool = True
    conv: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], count: Int[Array, " b"], noise: Float[Array, "b n"] | None
    ) -> tuple[Float[Array, "b m d"], Int[Array, " b"]]:
        """Tokens and their count -> merged tokens, m = ceil(n / 2), and their count."""
        valid = jnp.arange(x.shape[1]) < count[:, None]
        # Zero the padding, as the convolution's own padding at the ends is zero.
        x = jnp.where(valid[:, :, None], x, 0)
        if self.conv:
            conv = nn.Conv(
                x.shape[2], (3,), padding=1, use_bias=False, dtype=self.dtype, name="conv"
            )
            x = x + conv(x.astype(self.dtype))
        x = layer_norm("norm")(x)  # at least float32
        self.sow("intermediates", "tokens", x)
        score = clusters = None
        score_bias: Float[Array, ""] | float = 0.0
        if self.attention or self.method in methods.SCORED:
            score, score_bias = TokenScore(name="score")(x)  # [B, N], []
            self.sow("intermediates", "scores", score + score_bias)
        if self.method in methods.CLUSTERING:
            clusters = methods.cluster(self.method, x, count, noise, group=self.group)
            clusters = checkpoint_name(clusters, "clusters")
            self.sow("intermediates", "clusters", clusters)
        merged = methods.halve(
            self.method, x, score, count, clusters, bias=score_bias, group=self.group
        )
        self.sow("intermediates", "merged", merged)
        if self.attention:
            assert score is not None
            merged = merged + self._attend(merged, x, jnp.where(valid, score, -jnp.inf))
        return merged, methods.halved(count)

    def _attend(
        self, merged: Float[Array, "b m d"], x: Float[Array, "b n d"], bias: Float[Array, "b n"]
    ) -> Float[Array, "b m d"]:
        """Attention of the merged tokens to the tokens before merging."""
        width = x.shape[2]

        def dense(name, x, parts=1):
            return PartedDense(width, parts, dtype=self.dtype, name=name)(x.astype(self.dtype))

        norm = layer_norm("attention_norm")
        (query,) = dense("query", norm(merged))
        key, value = dense("key_value", norm(x), parts=2)
        # The score of a token is added to its logits as a key; the bias cancels in the softmax.
        if self.fused and not self.is_initializing():
            from hvp_jax.models.kernels.cross_attention import cross_attention  # Pallas

            y = cross_attention(query, key, value, bias, HEADS)
        else:
            query, key, value = (x.reshape(*x.shape[:2], HEADS, -1) for x in (query, key, value))
            y = grouped_attention(query, key, value, bias, self.group).reshape(merged.shape)
        (y,) = dense("attention_out", y)
        return y


class TokenDistillation(nn.Module):
    """All stages, with weights shared by the taps, which are stacked on the batch axis."""

    stages: int
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # save only a stage's input and clusters
    group: int | None = None  # of `map_groups`
    fused: bool = False  # attention by `hvp_jax/models/kernels/cross_attention.py`
    method: str = "dpc_knn"  # of `methods.py`
    attention: bool = True  # False: without this layer of every stage
    conv: bool = True  # likewise

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
            if key is not None and self.method == "dpc_knn":
                stage_key = jax.vmap(jax.random.fold_in, (0, None))(key, i)
                noise = jax.vmap(jax.random.uniform, (0, None))(stage_key, x.shape[1:2])
            halve = stage(
                dtype=self.dtype,
                fused=self.fused,
                group=self.group,
                method=self.method,
                attention=self.attention,
                conv=self.conv,
                name=f"stage_{i}",
            )
            x, count = halve(x, count, noise)
        return x, count
