"""The contrastive loss (paper section 3.4), on all scores or on a device's shard of columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hvp_jax.models.clip_config import PAPER_TERMS


def info_nce(
    logits: Float[Array, "*stack texts clips"], axis: str | None = None
) -> Float[Array, "*stack"]:
    """Mean cross-entropy of the diagonal over rows, plus that over columns.

    Without an `axis` the logits are square. With one, each device holds the columns of its
    own clips, and every device gets the loss over all columns. Only arrays of one row or one
    column length are communicated.
    """
    texts, clips = logits.shape[-2:]
    columns = jax.nn.logsumexp(logits, axis=-2)  # [..., clips]
    if axis is None:
        rows = jax.nn.logsumexp(logits, axis=-1)  # [..., texts]
        matched = jnp.diagonal(logits, axis1=-2, axis2=-1)
        return (rows - matched).mean(axis=-1) + (columns - matched).mean(axis=-1)
    first = jax.lax.axis_index(axis) * clips
    own = jax.lax.dynamic_slice_in_dim(logits, first, clips, axis=-2)
    matched = jnp.diagonal(own, axis1=-2, axis2=-1)  # [..., clips]
    row_max = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), axis)  # [..., texts]
    total = jax.lax.psum(jnp.exp(logits - row_max[..., None]).sum(axis=-1), axis)
    # Each device takes the rows of its own clips' texts: the sum over devices has every row once.
    rows = jax.lax.dynamic_slice_in_dim(jnp.log(total) + row_max, first, clips, axis=-1)
    return jax.lax.psum((rows + columns - 2 * matched).sum(axis=-1), axis) / texts


@jax.named_scope("loss")
def contrastive(
    scores: Float[Array, "terms l texts clips"],
    log_scale: Float[Array, ""],
    axis: str | None = None,
    *,
    terms: tuple[str, ...] = PAPER_TERMS,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of InfoNCE over all terms, taps and both directions, and its parts.

    The logits are the scores times exp(`log_scale`). The parts are named `TERM/tapI`, with I
    counted from 0; `terms` names those of the scores. With an `axis`, the scores are those of the
    device's own clips.
    """
    losses = info_nce(jnp.exp(log_scale) * scores, axis)  # [terms, l]
    parts = {
        f"{term}/tap{i}": of_term[i]
        for term, of_term in zip(terms, losses, strict=True)
        for i in range(losses.shape[1])
    }
    return losses.sum(), parts
