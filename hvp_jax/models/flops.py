"""Floating-point operations of a training step, counted from the shapes of its matrix products.

A product of [a, b] and [b, c] takes 2abc operations, and its gradient twice as many. The
clustering and what is frozen have no gradient.
"""

from hvp_jax.models.distillation.methods import CLUSTERING, ITERATIONS
from hvp_jax.models.frame_aggregation import LAYERS
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.model_spec import HeadConfig, head_of


def tower(tokens: int, width: int, layers: int) -> int:
    """Forward pass of one sequence: per block 12 width² weights and two attention products."""
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def distillation(tokens: int, width: int, head: HeadConfig) -> tuple[float, float]:
    """Forward pass of one clip at one tap: operations with a gradient, and without (distances)."""
    learned = clustering = 0.0
    for _ in range(head.stages):
        merged = (tokens + 1) // 2
        if head.conv:
            learned += 2 * tokens * 3 * width**2
        if head.attention:
            learned += 2 * (2 * merged + 2 * tokens) * width**2 + 4 * merged * tokens * width
        if head.method in CLUSTERING:
            learned += 2 * tokens * merged * width  # merging
        if head.method == "dpc_knn":
            clustering += 2 * tokens**2 * width
        elif head.method == "kmeans":
            clustering += (2 * ITERATIONS + 1) * 2 * tokens * merged * width
        tokens = merged
    return learned, clustering


def frame_aggregation(frames: int, width: int, kind: str) -> float:
    """Forward pass of one clip at one tap."""
    if kind == "none":
        return 0.0
    out = 2.0 * frames * width**2
    return out + (tower(frames, width, LAYERS) if kind == "transformer" else 8 * out)


def word_patch(texts: int, words: int, clips: int, tokens: int, *, width: int) -> float:
    """Word-patch scores of every text and clip at one tap."""
    return 2.0 * texts * words * clips * tokens * width


def tokens_of(model: HVPNet, frames: int) -> tuple[int, int]:
    """The tokens of a clip of `frames` frames at one tap, before and after distillation."""
    config = model.clip_config
    tokens = distilled = frames * ((config.image_size // config.patch_size) ** 2 + 1)
    for _ in range(model.stages):
        distilled = (distilled + 1) // 2
    return tokens, distilled


def scoring(model: HVPNet, texts: int, clips: int, frames: int, words: int) -> float:
    """The scores of every text and clip."""
    width, taps = model.clip_config.embed_dim, len(model.taps)
    _, distilled = tokens_of(model, frames)
    sentence_terms = [term for term in model.terms if term != "word_patch"]
    operations = 2.0 * len(sentence_terms) * texts * clips * width
    if head_of(model).uses_words:
        operations += word_patch(texts, words, clips, distilled, width=width)
    return taps * operations


def training_step(model: HVPNet, batch: int, frames: int, words: int) -> float:
    """One update on a batch of clips of `frames` frames and captions of `words` words.

    Parts that no chosen term needs are not counted, nor are the products of a sentence with one
    feature of a clip.
    """
    config, taps, head = model.clip_config, len(model.taps), head_of(model)
    width, modules = config.embed_dim, head.modules()
    patches = (config.image_size // config.patch_size) ** 2
    tokens, distilled = tokens_of(model, frames)

    kept = model.learning_layers  # None: all layers have a gradient

    def backward(layers: int) -> float:
        """The share of a tower's products that have a gradient."""
        return 1.0 if kept is None else min(kept, layers) / layers

    patch_embedding = frames * 2 * patches * 3 * config.patch_size**2 * config.vision_width
    projected = tokens if head.uses_patches else frames
    vision = frames * tower(patches + 1, config.vision_width, config.vision_layers)
    text = tower(words, config.text_width, config.text_layers)
    towers = vision * (1 + 2 * backward(config.vision_layers))
    towers += text * (1 + 2 * backward(config.text_layers))
    projections = taps * 2 * projected * config.vision_width * width
    projections += 2 * (words if head.uses_words else 1) * config.text_width * width
    towers += projections * (1 if kept == 0 else 3)
    learned = clustering = 0.0
    if "distill" in modules:
        learned, clustering = distillation(tokens, width, head)
    if "frame_aggregation" in modules:
        learned += frame_aggregation(frames, width, head.aggregation)
    counts = {"word_weight": words, "patch_weight": taps * distilled, "frame_weight": taps * frames}
    weighted = sum(count for name, count in counts.items() if name in modules)
    with_gradient = taps * learned + weighted * 2 * 4 * width**2
    if head.uses_words:
        with_gradient += taps * word_patch(batch, words, 1, distilled, width=width)
    # The pixels have no gradient.
    patches_passes = 1 if model.freeze_patches or kept is not None else 2
    return batch * (
        towers + 3 * with_gradient + patches_passes * patch_embedding + taps * clustering
    )
