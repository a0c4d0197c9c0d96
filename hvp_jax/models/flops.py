"""How many floating-point operations a step takes, counted from the sizes of its products.

A product of [a, b] and [b, c] is 2abc. The gradient of a product takes twice as many,
unless one side has none: the clustering, and the frozen patch convolution.
"""

from hvp_jax.models.hvpnet import HVPNet


def tower(tokens: int, width: int, layers: int) -> float:
    """The blocks of one sequence, forward: 12 width² weights, and two attention products."""
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def distillation(tokens: int, width: int, stages: int) -> tuple[float, float]:
    """One clip at one tap, forward: what has a gradient, and what has none (distances)."""
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


def word_patch(texts: int, words: int, clips: int, tokens: int, width: int) -> float:
    """Scores of every text and clip at one tap."""
    return 2.0 * texts * words * clips * tokens * width


def training_step(model: HVPNet, batch: int, frames: int, words: int) -> float:
    """One update on `batch` clips of `frames` frames and captions of `words` words."""
    s, taps = model.clip_config, len(model.taps)
    patches = (s.image_size // s.patch_size) ** 2
    tokens = frames * (patches + 1)
    distilled = tokens
    for _ in range(model.stages):
        distilled = (distilled + 1) // 2

    patch_embedding = frames * 2 * patches * 3 * s.patch_size**2 * s.vision_width
    vision = frames * tower(patches + 1, s.vision_width, s.vision_layers)
    vision += taps * 2 * tokens * s.vision_width * s.embed_dim
    text = tower(words, s.text_width, s.text_layers) + 2 * words * s.text_width * s.embed_dim
    learned, clustering = distillation(tokens, s.embed_dim, model.stages)
    weighed = taps * (distilled + frames) + words
    weighing = weighed * 2 * 4 * s.embed_dim**2
    scoring = taps * word_patch(batch, words, 1, distilled, s.embed_dim)
    with_gradient = vision + text + taps * learned + weighing + scoring
    patches_passes = 1 if model.freeze_patches else 2  # the pixels have no gradient
    return batch * (3 * with_gradient + patches_passes * patch_embedding + taps * clustering)
