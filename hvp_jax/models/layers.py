"""Layers shared by CLIP's towers and the distillation."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's approximation of GELU; any shape."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function (Flax's default is the tanh form); any shape."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


def layer_norm(name: str) -> nn.LayerNorm:
    """CLIP's norm: epsilon 1e-5 and two-pass variance, in float32 or better."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def by_row(layer: Callable, x: jax.Array) -> jax.Array:
    """Applies a dense layer to [..., D] as to one matrix of rows.

    XLA on a CPU takes half as long for the gradient of a product of two matrices as for
    that of the same product with more axes; elsewhere the reshape costs nothing.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Softmax attention, [N, Q, H, d] over [N, S, H, d] -> [N, Q, H, d].

    `bias` [N or 1, 1, Q or 1, S] is added to the logits, -inf where not to attend. The
    softmax is in float32 or better (`jax.nn.dot_product_attention` never better).
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("nqhd,nshd->nhqs", query, key, preferred_element_type=wide)
    if bias is not None:
        logits += bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Dividing what was summed, not each weight: one pass less over the largest array.
    total = weights.sum(axis=-1, keepdims=True)
    summed = jnp.einsum(
        "nhqs,nshd->nhqd", weights.astype(value.dtype), value, preferred_element_type=wide
    )
    return (summed / total).astype(value.dtype).swapaxes(1, 2)
