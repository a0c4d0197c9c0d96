"""Floating-point operations of a training step, counted from the shapes of its matrix products.

A product of [a, b] and [b, c] takes 2abc operations, and its gradient twice as many. The
clustering and the frozen patch convolution have no gradient.
"""

from hvp_jax.models.hvpnet import HVPNet


def tower(tokens: int, width: int, layers: int) -> int:
    """Forward pass of one sequence: per block 12 width² weights and two attention products."""
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def distillation(tokens: int, width: int, stages: int) -> tuple[float, float]:
    """Forward pass of one clip at one tap: operations with a gradient, and without (distances)."""
    learned = clustering = 0.0
    for _ in range(stages):
        merged = (tokens + 1) // 2
        convolution = 2 * tokens * 3 * width**2
        merging = 2 * tokens * merged * width
        attention = 2 * (2 * merged + 2 * tokens) * width**2 + 4 * merged * tokens * width
        learned += convolution + merging + attention
        clustering += 2 * tokens**2 * width
        tokens = merged
    return learned, clustering


def word_patch(texts: int, words: int, clips: int, tokens: int, *, width: int) -> float:
    """Word-patch scores of every text and clip at one tap."""
    return 2.0 * texts * words * clips * tokens * width


def training_step(model: HVPNet, batch: int, frames: int, words: int) -> float:
    """One update on a batch of clips of `frames` frames and captions of `words` words."""
    config, taps = model.clip_config, len(model.taps)
    patches = (config.image_size // config.patch_size) ** 2
    tokens = frames * (patches + 1)
    distilled = tokens
    for _ in range(model.stages):
        distilled = (distilled + 1) // 2

    patch_embedding = frames * 2 * patches * 3 * config.patch_size**2 * config.vision_width
    vision = frames * tower(patches + 1, config.vision_width, config.vision_layers)
    vision += taps * 2 * tokens * config.vision_width * config.embed_dim
    text = (
        tower(words, config.text_width, config.text_layers)
        + 2 * words * config.text_width * config.embed_dim
    )
    learned, clustering = distillation(tokens, config.embed_dim, model.stages)
    token_weights = (taps * (distilled + frames) + words) * 2 * 4 * config.embed_dim**2
    scoring = taps * word_patch(batch, words, 1, distilled, width=config.embed_dim)
    with_gradient = vision + text + taps * learned + token_weights + scoring
    patches_passes = 1 if model.freeze_patches else 2  # the pixels have no gradient
    return batch * (3 * with_gradient + patches_passes * patch_embedding + taps * clustering)
