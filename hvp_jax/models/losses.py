"""The contrastive loss (paper section 3.4), on all scores or on a device's shard of columns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hvp_jax.models.clip_config import PAPER_TERMS


def info_nce(
    logits: Float[Array, "*stack texts clips"],
    axis: str | tuple[str, ...] | None = None,
    positives: Bool[Array, "texts clips"] | None = None,
) -> Float[Array, "*stack"]:
    """Mean cross-entropy of the diagonal over rows, plus that over columns.

    Without an `axis` the logits are square. With one, each device holds the columns of its
    own clips, and every device gets the loss over all columns. Only arrays of one row or one
    column length are communicated.

    With `positives`, a symmetric relation that has the diagonal in it, a row or column has the mean
    cross-entropy of its positives: L_out of SupCon (Khosla et al., arXiv 2004.11362, equation 2).
    """
    texts, clips = logits.shape[-2:]
    columns = jax.nn.logsumexp(logits, axis=-2)  # [..., clips]
    if positives is not None:
        # Of a column. The sum over all columns is that over all rows, as the relation is symmetric.
        matched = jnp.where(positives, logits, 0).sum(axis=-2) / positives.sum(axis=-2)
    else:
        own = logits
        if axis is not None:
            first = jax.lax.axis_index(axis) * clips
            own = jax.lax.dynamic_slice_in_dim(logits, first, clips, axis=-2)
        matched = jnp.diagonal(own, axis1=-2, axis2=-1)  # [..., clips]
    if axis is None:
        rows = jax.nn.logsumexp(logits, axis=-1)  # [..., texts]
        return (rows - matched).mean(axis=-1) + (columns - matched).mean(axis=-1)
    row_max = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), axis)  # [..., texts]
    total = jax.lax.psum(jnp.exp(logits - row_max[..., None]).sum(axis=-1), axis)
    # Each device takes the rows of its own clips' texts: the sum over devices has every row once.
    first = jax.lax.axis_index(axis) * clips
    rows = jax.lax.dynamic_slice_in_dim(jnp.log(total) + row_max, first, clips, axis=-1)
    return jax.lax.psum((rows + columns - 2 * matched).sum(axis=-1), axis) / texts


def same_clip(
    clip_ids: Int[Array, " clips"], axis: str | tuple[str, ...] | None = None
) -> tuple[Bool[Array, "texts clips"], Bool[Array, "texts clips"]]:
    """Whether text i is a caption of clip j, and whether it is the one that is paired with it.

    Examples of the same clip have equal `clip_ids`. With an `axis`, they are those of the device's
    own clips, and texts are those of all devices.
    """
    ids, columns = clip_ids, jnp.arange(len(clip_ids))
    if axis is not None:
        ids = jax.lax.all_gather(clip_ids, axis, tiled=True)
        columns += jax.lax.axis_index(axis) * len(clip_ids)
    paired = jnp.arange(len(ids))[:, None] == columns
    return ids[:, None] == clip_ids, paired


@jax.named_scope("loss")
def contrastive(
    scores: Float[Array, "terms l texts clips"],
    log_scale: Float[Array, ""],
    axis: str | tuple[str, ...] | None = None,
    *,
    terms: tuple[str, ...] = PAPER_TERMS,
    form: str = "per_term",
    same_video: str = "negative",
    clip_ids: Int[Array, " clips"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of all terms, taps and both directions, and its parts.

    The logits are the scores times exp(`log_scale`); `terms` names those of the scores. With an
    `axis`, the scores are those of the device's own clips.

    `form`: "per_term", the sum of InfoNCE over all terms and taps, whose parts are named
    `TERM/tapI`, with I counted from 0; or "summed_score", InfoNCE of the sum over terms and taps,
    which has no parts. `same_video`: captions of one clip, whose `clip_ids` are equal, are
    "negative" for each other's clip, or "ignored", or "positive"; the first needs no `clip_ids`.
    """
    logits = jnp.exp(log_scale) * scores
    if form == "summed_score":
        logits = logits.sum(axis=(0, 1))
    positives = None
    if same_video != "negative":
        assert clip_ids is not None, "the batch of such a loss has them"
        same, paired = same_clip(clip_ids, axis)
        if same_video == "positive":
            positives = same
        else:
            logits = jnp.where(same & ~paired, -jnp.inf, logits)
    losses = info_nce(logits, axis, positives)  # [terms, l], or []
    if form == "summed_score":
        return losses, {}
    parts = {
        f"{term}/tap{i}": of_term[i]
        for term, of_term in zip(terms, losses, strict=True)
        for i in range(losses.shape[1])
    }
    return losses.sum(), parts
