"""The contrastive loss over given scores (paper section 3.4), whole or in parts of its columns."""

import jax
import jax.numpy as jnp

from hvp_jax.models.similarity import TERMS


def info_nce(logits: jax.Array, axis: str | None = None) -> jax.Array:
    """Mean cross-entropy of the diagonal, rows and columns summed: [..., B, b] -> [...].

    Without an `axis` b is B. With one, a device holds its own b of the B columns, and every
    device gets the number of the whole: nothing as large as the table is ever sent.
    """
    texts, clips = logits.shape[-2:]
    columns = jax.nn.logsumexp(logits, axis=-2)  # [..., b]
    if axis is None:
        rows = jax.nn.logsumexp(logits, axis=-1)  # [..., B]
        matched = jnp.diagonal(logits, axis1=-2, axis2=-1)
        return (rows - matched).mean(axis=-1) + (columns - matched).mean(axis=-1)
    first = jax.lax.axis_index(axis) * clips
    own = jax.lax.dynamic_slice_in_dim(logits, first, clips, axis=-2)
    matched = jnp.diagonal(own, axis1=-2, axis2=-1)  # [..., b]
    highest = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), axis)  # [..., B]
    total = jax.lax.psum(jnp.exp(logits - highest[..., None]).sum(axis=-1), axis)
    # Each device takes the rows of its own clips' texts, so that the sum over devices is of all.
    rows = jax.lax.dynamic_slice_in_dim(jnp.log(total) + highest, first, clips, axis=-1)
    return jax.lax.psum((rows + columns - 2 * matched).sum(axis=-1), axis) / texts


def contrastive(
    scores: jax.Array, log_scale: jax.Array, axis: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scores [3, L, B, B] and the temperature's logarithm -> the loss and its parts.

    InfoNCE of every term at every tap, in both directions, all summed; the parts are
    `TERM/tapI`, I counting the taps from 0. With an `axis`, the scores are [3, L, B, b] of
    the device's own clips.
    """
    parts = info_nce(jnp.exp(log_scale) * scores, axis)  # [3, L]
    named = {
        f"{term}/tap{i}": parts[t, i] for t, term in enumerate(TERMS) for i in range(parts.shape[1])
    }
    return parts.sum(), named
