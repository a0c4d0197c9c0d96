"""The contrastive loss over given scores (paper section 3.4). No collectives here."""

import jax
import jax.numpy as jnp

from hvp_jax.similarity import TERMS


def info_nce(logits: jax.Array) -> jax.Array:
    """Mean cross-entropy of the diagonal, rows and columns summed: [..., B, B] -> [...]."""
    matched = jnp.diagonal(logits, axis1=-2, axis2=-1)
    rows = jax.nn.logsumexp(logits, axis=-1) - matched
    columns = jax.nn.logsumexp(logits, axis=-2) - matched
    return rows.mean(axis=-1) + columns.mean(axis=-1)


def contrastive(scores: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scores [3, L, B, B] and the temperature's logarithm -> the loss and its parts.

    InfoNCE of every term at every tap, in both directions, all summed; the parts are
    `TERM/tapI`, I counting the taps from 0.
    """
    parts = info_nce(jnp.exp(log_scale) * scores)  # [3, L]
    named = {
        f"{term}/tap{i}": parts[t, i] for t, term in enumerate(TERMS) for i in range(parts.shape[1])
    }
    return parts.sum(), named
