"""The three scores of a text and a video at every tap (paper section 3.3).

word-patch:     1/2 [sum_w ω_w max_p cos(w, p) + sum_p ω_p max_w cos(w, p)]
sentence-patch: sum_p ω_p cos(sentence, p)
sentence-frame: sum_f ω_f cos(sentence, f)

Everything is normalised and weighed once. A sentence's score is then one product
with the weighted sum of tokens, and only word-patch needs every pair of tokens: it
is computed in tiles of texts x clips, a matrix product and two maxima each.
"""

import flax.struct
import jax
import jax.numpy as jnp

TERMS = ("word_patch", "sentence_patch", "sentence_frame")


@flax.struct.dataclass
class TextFeatures:
    words: jax.Array  # [A, W, D], unit length; a padded word repeats the first
    word_weights: jax.Array  # [A, W]; 0 for a padded word
    sentence: jax.Array  # [A, D], unit length


@flax.struct.dataclass
class VideoFeatures:
    patches: jax.Array  # [B, L, M, D], unit length; a padded token repeats the first
    patch_weights: jax.Array  # [B, L, M]; 0 for a padded token
    patch_sum: jax.Array  # [B, L, D], the weighted sum of the patches
    frame_sum: jax.Array  # [B, L, D], the weighted sum of the unit frames


def l2_normalize(x: jax.Array) -> jax.Array:
    """Features [..., D] over their length, in float32 or better; 0 stays 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def normalize_token_weights(raw: jax.Array, valid: jax.Array, normalize: str) -> jax.Array:
    """Outputs of a weighting network [..., N] -> weights [..., N], 0 where not valid.

    `normalize` is "softmax", over the valid tokens, or "none" (the reference).
    """
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    if normalize == "softmax":
        raw = jax.nn.softmax(jnp.where(valid, raw, -jnp.inf), axis=-1)
    return jnp.where(valid, raw, 0)


def pad_with_first_token(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Tokens [..., N, D] with the first in the place of those not valid.

    A maximum over the tokens is then a maximum over the valid ones, without a mask
    on the far larger array of pairs; so is its gradient.
    """
    return jnp.where(valid[..., None], x, x[..., :1, :])


def word_patch_tile(
    words: jax.Array, word_weights: jax.Array, patches: jax.Array, patch_weights: jax.Array
) -> jax.Array:
    """[A, W, D], [A, 1, W] or [1, C, W], [C, M, D], [C, M] -> scores [A, C].

    The word weights are the text's own [A, 1, W] or, paired, the clip's [1, C, W].
    """
    cosine = jnp.einsum("awd,cmd->awcm", words, patches).astype(word_weights.dtype)
    of_words = jnp.einsum("awc,acw->ac", cosine.max(axis=3), word_weights)
    of_patches = jnp.einsum("acm,cm->ac", cosine.max(axis=1), patch_weights)
    return (of_words + of_patches) / 2


def _tiles(x: jax.Array, most: int) -> jax.Array:
    """[N, ...] -> [tiles, n, ...] of the fewest, evenest tiles of at most `most`, padded by 0."""
    count = -(-x.shape[0] // most)
    size = -(-x.shape[0] // count)
    x = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, size, *x.shape[1:])


def word_patch(
    words: jax.Array,
    word_weights: jax.Array,
    patches: jax.Array,
    patch_weights: jax.Array,
    paired: bool = False,
    text_chunk: int = 48,
    clip_chunk: int = 16,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """[A, W, D], [A, W], [C, M, D], [C, M] -> scores [A, C], in tiles that change no score.

    With `paired` the word weights are [C, W]: those of the caption of each clip, which
    leaks it into the score (the reference). `dtype` is that of the matrix product. The
    gradient keeps the inputs of a tile and computes the rest again.
    """
    texts, clips = words.shape[0], patches.shape[0]
    dtype = dtype or words.dtype
    of_texts = [_tiles(words.astype(dtype), text_chunk)]
    of_clips = [_tiles(x, clip_chunk) for x in (patches.astype(dtype), patch_weights)]
    if paired:
        of_clips.append(_tiles(word_weights[None].swapaxes(0, 1), clip_chunk))  # [c, C, 1, W]
    else:
        of_texts.append(_tiles(word_weights[:, None], text_chunk))  # [a, A, 1, W]
    tile = jax.checkpoint(word_patch_tile)

    def clip_tile(of_clip):
        patches, patch_weights, *weights = of_clip
        weights = [x.swapaxes(0, 1) for x in weights]  # [1, C, W]

        def text_tile(of_text):
            words, *own = of_text
            return tile(words, *(own or weights), patches, patch_weights)

        return jax.lax.map(text_tile, of_texts)

    scores = jax.lax.map(clip_tile, of_clips)  # [c, a, A, C]
    scores = scores.transpose(1, 2, 0, 3)
    return scores.reshape(scores.shape[0] * scores.shape[1], -1)[:texts, :clips]


def scores(
    text: TextFeatures,
    video: VideoFeatures,
    paired_weights: jax.Array | None = None,
    clip_chunk: int = 16,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Every text against every video: [3 terms, L taps, A, B], terms as in `TERMS`.

    `paired_weights` [B, W] selects the reference's leak: word weights of the caption
    that belongs to each video. None: each text's own.
    """
    clips, taps = video.patches.shape[:2]

    def stack(x):  # [B, L, ...] -> [L B, ...]: the taps are so many more clips
        return jnp.swapaxes(x, 0, 1).reshape(taps * clips, *x.shape[2:])

    paired = paired_weights is not None
    weights = jnp.tile(paired_weights, (taps, 1)) if paired else text.word_weights
    word = word_patch(
        text.words,
        weights,
        stack(video.patches),
        stack(video.patch_weights),
        paired,
        clip_chunk=clip_chunk,
        dtype=dtype,
    ).reshape(-1, taps, clips)
    highest = jax.lax.Precision.HIGHEST
    patch = jnp.einsum("ad,bld->lab", text.sentence, video.patch_sum, precision=highest)
    frame = jnp.einsum("ad,bld->lab", text.sentence, video.frame_sum, precision=highest)
    return jnp.stack([jnp.swapaxes(word, 0, 1), patch, frame])
