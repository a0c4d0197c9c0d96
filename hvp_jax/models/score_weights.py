"""The weights of words, patches, frames and taps in a score."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


def normalize_token_weights(
    raw: Float[Array, "*shape n"], valid: Bool[Array, "... n"], normalize: str
) -> Float[Array, "*shape n"]:
    """Outputs of a weighting network -> token weights, 0 for padding.

    `normalize` is "softmax", over the valid tokens, or "none" (the reference).
    """
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    if normalize == "softmax":
        raw = jax.nn.softmax(jnp.where(valid, raw, -jnp.inf), axis=-1)
    return jnp.where(valid, raw, 0)


def uniform_token_weights(
    valid: Bool[Array, "*shape n"], dtype: DTypeLike
) -> Float[Array, "*shape n"]:
    """1/n for n valid tokens, 0 for padding."""
    weights = valid.astype(dtype)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)


def normalize_tap_weights(raw: Float[Array, "terms l"]) -> Float[Array, "terms l"]:
    """Parameters -> the weights of the taps in every term, whose mean is 1."""
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    return raw.shape[1] * jax.nn.softmax(raw, axis=1)
