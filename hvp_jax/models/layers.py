"""Layers shared by CLIP's towers and the distillation."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU with the error function (Flax's default is the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


def layer_norm(name: str) -> nn.LayerNorm:
    """CLIP's layer norm: epsilon 1e-5 and two-pass variance, in at least float32."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def by_row(
    layer: Callable[[jax.Array], jax.Array], x: Float[Array, "*shape d"]
) -> Float[Array, "*shape features"]:
    """Applies a dense layer to `x` reshaped to a matrix.

    On a CPU, XLA computes the gradient of a two-dimensional matrix product twice as fast as
    that of the same product with more axes; on other backends the reshape is free.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


@jax.named_scope("attention")
def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b n h d"],
    value: Float[Array, "b n h d"],
    bias: Float[Array, "#b 1 #q n"] | None = None,
) -> Float[Array, "b q h d"]:
    """Softmax attention of q queries over n tokens, with h heads of width d.

    `bias` is added to the logits; -inf masks a token. The softmax is in at least float32
    (`jax.nn.dot_product_attention` always uses float32, also for float64).
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("nqhd,nshd->nhqs", query, key, preferred_element_type=wide)
    if bias is not None:
        logits += bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Dividing the sum instead of each weight saves a pass over the largest array.
    total = weights.sum(axis=-1, keepdims=True)
    summed = jnp.einsum(
        "nhqs,nshd->nhqd", weights.astype(value.dtype), value, preferred_element_type=wide
    )
    return (summed / total).astype(value.dtype).swapaxes(1, 2)
