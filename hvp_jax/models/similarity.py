"""The scores of a text and a video at every tap (paper section 3.3).

word-patch:     1/2 [sum_w ω_w max_p cos(w, p) + sum_p ω_p max_w cos(w, p)]
sentence-patch: sum_p ω_p cos(sentence, p)
sentence-frame: sum_f ω_f cos(sentence, f)
sentence-clip:  cos(sentence, mean of the frames), of CLIP4Clip (arXiv 2104.08860); by choice only

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

from hvp_jax.models.clip_config import TERMS
from hvp_jax.models.score_weights import uniform_token_weights

# The field of `VideoFeatures` that a term needs, in the order of TERMS.
FIELDS = dict(zip(TERMS, ("patches", "patch_sum", "frame_sum", "clip_feature"), strict=True))


# The fields of these two are not checked at run time: as pytrees they also hold shapes,
# shardings or arrays with a leading device axis. A field that no chosen term needs is None.
@typing.no_type_check
@flax.struct.dataclass
class TextFeatures:
    words: Float[Array, "texts w d"] | None  # unit length; padding repeats the first word
    word_weights: Float[Array, "texts w"] | None  # 0 for padding
    sentence: Float[Array, "texts d"] | None  # unit length


@typing.no_type_check
@flax.struct.dataclass
class VideoFeatures:
    # unit length; padding repeats the first token
    patches: Float[Array, "clips l m d"] | None = None
    patch_weights: Float[Array, "clips l m"] | None = None  # 0 for padding
    patch_sum: Float[Array, "clips l d"] | None = None  # weighted sum of the patches
    frame_sum: Float[Array, "clips l d"] | None = None  # weighted sum of the normalised frames
    clip_feature: Float[Array, "clips l d"] | None = None  # unit length: mean of the frames
    # Of each term at each tap, the same for all clips; None: 1.
    tap_weights: Float[Array, "clips terms l"] | None = None


def terms_of(video: VideoFeatures) -> tuple[str, ...]:
    """The terms that can be scored with these features, in the order of `TERMS`."""
    return tuple(term for term, field in FIELDS.items() if getattr(video, field) is not None)


def l2_normalize(x: Float[Array | np.ndarray, "*shape d"]) -> Float[Array, "*shape d"]:
    """Divides features by their L2 norm, in at least float32; a zero vector stays zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def mean_clip_feature(
    frames: Float[Array, "l b t d"], valid: Bool[Array, "b t"]
) -> Float[Array, "b l d"]:
    """The mean of the valid frames' features, which have unit length, at unit length."""
    weights = uniform_token_weights(valid, frames.dtype)
    mean = jnp.einsum("bt,lbtd->bld", weights, frames, precision=jax.lax.Precision.HIGHEST)
    return l2_normalize(mean)


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
) -> Float[Array, "terms l texts clips"]:
    """Scores of every text and every clip: the terms of `terms_of(video)`, by tap.

    `paired_weights` are the word weights of each clip's own caption: the reference uses them
    for every text, which leaks the answer. None: each text uses its own.
    """
    table = []
    if video.patches is not None:
        of_words = _word_patch_of_taps(text, video, paired_weights, clip_chunk, dtype=dtype)
        table.append(of_words)
    return weigh_taps([*table, *sentence_scores(text, video)], video.tap_weights)


def sentence_scores(
    text: TextFeatures, video: VideoFeatures
) -> list[Float[Array, "l texts clips"]]:
    """Scores of the terms after word-patch: products with one feature of each clip and tap."""
    return [
        jnp.einsum("ad,bld->lab", text.sentence, feature, precision=jax.lax.Precision.HIGHEST)
        for feature in (video.patch_sum, video.frame_sum, video.clip_feature)
        if feature is not None
    ]


@typing.no_type_check
def sentence_vector(video: VideoFeatures) -> Float[Array | np.ndarray, "clips d"] | None:
    """The vector whose product with a sentence is the sum of the terms after word-patch.

    None if there is no such term. Arrays of NumPy give one of NumPy.
    """
    parts = []
    for row, term in enumerate(terms_of(video)):
        if term != "word_patch":
            feature = getattr(video, FIELDS[term])
            weights = 1 if video.tap_weights is None else video.tap_weights[:, row, :, None]
            parts.append((weights * feature).sum(axis=1))
    return sum(parts) if parts else None


def weigh_taps(
    terms: list[Float[Array, "l texts clips"]], tap_weights: Float[Array, "clips terms l"] | None
) -> Float[Array, "terms l texts clips"]:
    """The scores of all terms, each times the weight of its tap."""
    table = jnp.stack(terms)
    return table if tap_weights is None else table * tap_weights.transpose(1, 2, 0)[:, :, None]


def _word_patch_of_taps(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: Float[Array, "clips w"] | None,
    clip_chunk: int,
    *,
    dtype: DTypeLike | None,
) -> Float[Array, "l texts clips"]:
    assert video.patches is not None and text.words is not None
    clips, taps = video.patches.shape[:2]

    def stack(x):  # [B, L, ...] -> [L B, ...]: each tap of a clip is scored like a clip
        return jnp.swapaxes(x, 0, 1).reshape(taps * clips, *x.shape[2:])

    weights = text.word_weights
    if paired_weights is not None:
        weights = jnp.tile(paired_weights, (taps, 1))
    assert weights is not None
    of_stack = word_patch(
        text.words,
        weights,
        stack(video.patches),
        stack(video.patch_weights),
        paired=paired_weights is not None,
        clip_chunk=clip_chunk,
        dtype=dtype,
    )
    return jnp.swapaxes(of_stack.reshape(-1, taps, clips), 0, 1)
