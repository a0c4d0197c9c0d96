"""The three scores of a text and a video at every tap (paper section 3.3).

word-patch:     1/2 [sum_w ω_w max_p cos(w, p) + sum_p ω_p max_w cos(w, p)]
sentence-patch: sum_p ω_p cos(sentence, p)
sentence-frame: sum_f ω_f cos(sentence, f)

Features are normalised and weights computed once per caption and per clip. A sentence's
score is then one product with the weighted sum of tokens. Only word-patch needs every pair
of tokens: it is computed in tiles of texts x clips, a matrix product and two maxima each.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

TERMS = ("word_patch", "sentence_patch", "sentence_frame")


# The fields of these two are not checked at run time: as pytrees they also hold shapes,
# shardings or arrays with a leading device axis.
@typing.no_type_check
@flax.struct.dataclass
class TextFeatures:
    words: Float[Array, "texts w d"]  # unit length; padding repeats the first word
    word_weights: Float[Array, "texts w"]  # 0 for padding
    sentence: Float[Array, "texts d"]  # unit length


@typing.no_type_check
@flax.struct.dataclass
class VideoFeatures:
    patches: Float[Array, "clips l m d"]  # unit length; padding repeats the first token
    patch_weights: Float[Array, "clips l m"]  # 0 for padding
    patch_sum: Float[Array, "clips l d"]  # weighted sum of the patches
    frame_sum: Float[Array, "clips l d"]  # weighted sum of the normalised frames


def l2_normalize(x: Float[Array | np.ndarray, "*shape d"]) -> Float[Array, "*shape d"]:
    """Divides features by their L2 norm, in at least float32; a zero vector stays zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


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


def pad_with_first_token(
    x: Float[Array, "*shape n d"], valid: Bool[Array, "... n"]
) -> Float[Array, "*shape n d"]:
    """Replaces padding tokens by the first token.

    A maximum over all tokens then equals the maximum over the valid ones, and so does its
    gradient, without a mask on the far larger array of token pairs.
    """
    return jnp.where(valid[..., None], x, x[..., :1, :])


def word_patch_tile(
    words: Float[Array, "texts w d"],
    word_weights: Float[Array, "#texts #clips w"],
    patches: Float[Array, "clips m d"],
    patch_weights: Float[Array, "clips m"],
) -> Float[Array, "texts clips"]:
    """Word-patch scores of a tile of texts and clips.

    The word weights are those of the text [texts, 1, w] or, paired, of the clip [1, clips, w].
    """
    cosine = jnp.einsum("awd,cmd->awcm", words, patches).astype(word_weights.dtype)
    word_score = jnp.einsum("awc,acw->ac", cosine.max(axis=3), word_weights)
    patch_score = jnp.einsum("acm,cm->ac", cosine.max(axis=1), patch_weights)
    return (word_score + patch_score) / 2


def _tiles(x: jax.Array, max_size: int) -> jax.Array:
    """[N, ...] -> [tiles, size, ...]: as few tiles as possible, of equal size, padded with 0."""
    count = -(-x.shape[0] // max_size)
    size = -(-x.shape[0] // count)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, size, *x.shape[1:])


def word_patch(
    words: Float[Array, "texts w d"],
    word_weights: Float[Array, "texts_or_clips w"],
    patches: Float[Array, "clips m d"],
    patch_weights: Float[Array, "clips m"],
    *,
    paired: bool = False,
    text_chunk: int = 48,
    clip_chunk: int = 16,
    dtype: DTypeLike | None = None,
) -> Float[Array, "texts clips"]:
    """Word-patch scores of every text and clip; the tile sizes do not affect them.

    With `paired` the word weights are [clips, w]: those of each clip's own caption, which
    leaks it into the score (the reference). `dtype` is that of the matrix product. The
    backward pass recomputes each tile from its inputs.
    """
    texts, clips = words.shape[0], patches.shape[0]
    dtype = dtype or words.dtype
    text_side = [_tiles(words.astype(dtype), text_chunk)]
    clip_side = [_tiles(x, clip_chunk) for x in (patches.astype(dtype), patch_weights)]
    if paired:
        clip_side.append(_tiles(word_weights[None].swapaxes(0, 1), clip_chunk))  # [c, C, 1, W]
    else:
        text_side.append(_tiles(word_weights[:, None], text_chunk))  # [a, A, 1, W]
    tile = jax.checkpoint(word_patch_tile)

    def clip_tile(clip_arrays):
        patches, patch_weights, *clip_weights = clip_arrays
        clip_weights = [x.swapaxes(0, 1) for x in clip_weights]  # [1, C, W]

        def text_tile(text_arrays):
            words, *text_weights = text_arrays
            return tile(words, *(text_weights or clip_weights), patches, patch_weights)

        return jax.lax.map(text_tile, text_side)

    scores = jax.lax.map(clip_tile, clip_side)  # [c, a, A, C]
    scores = scores.transpose(1, 2, 0, 3)
    return scores.reshape(scores.shape[0] * scores.shape[1], -1)[:texts, :clips]


@jax.named_scope("scoring")
def scores(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: Float[Array, "clips w"] | None = None,
    clip_chunk: int = 16,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "3 l texts clips"]:
    """Scores of every text and every clip: the terms in the order of `TERMS`, by tap.

    `paired_weights` are the word weights of each clip's own caption: the reference uses them
    for every text, which leaks the answer. None: each text uses its own.
    """
    clips, taps = video.patches.shape[:2]

    def stack(x):  # [B, L, ...] -> [L B, ...]: each tap of a clip is scored like a clip
        return jnp.swapaxes(x, 0, 1).reshape(taps * clips, *x.shape[2:])

    weights = text.word_weights
    if paired_weights is not None:
        weights = jnp.tile(paired_weights, (taps, 1))
    word = word_patch(
        text.words,
        weights,
        stack(video.patches),
        stack(video.patch_weights),
        paired=paired_weights is not None,
        clip_chunk=clip_chunk,
        dtype=dtype,
    ).reshape(-1, taps, clips)
    highest = jax.lax.Precision.HIGHEST
    patch = jnp.einsum("ad,bld->lab", text.sentence, video.patch_sum, precision=highest)
    frame = jnp.einsum("ad,bld->lab", text.sentence, video.frame_sum, precision=highest)
    return jnp.stack([jnp.swapaxes(word, 0, 1), patch, frame])
