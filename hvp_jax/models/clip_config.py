"""The sizes of a model: those of a named variant, or inferred from the shapes of its tensors."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ACTIVATIONS = ("quick_gelu", "gelu")
# Of the score of a text and a video: see `similarity.py`.
TERMS = ("word_patch", "sentence_patch", "sentence_frame", "sentence_clip")
PAPER_TERMS = TERMS[:3]
LANES = 128  # columns that a TPU's units work on
# Of a frame whose attention, with its gradient, fits into a TPU core's fast memory.
MAX_FUSED_TOKENS = 640


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    context_length: int = 77
    vocab_size: int = 49408
    activation: str = "quick_gelu"  # one of ACTIVATIONS
    vision_head_dim: int = 64
    text_head_dim: int = 64
    vision_mlp_dim: int | None = None  # None: four times the width
    text_mlp_dim: int | None = None


def fits_fused_tower(config: ClipConfig) -> bool:
    """Whether `hvp_jax/models/tower/fused.py` can compute the vision tower."""
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    width, head_dim = config.vision_width, config.vision_head_dim
    return width % LANES == 0 and LANES % head_dim == 0 and tokens <= MAX_FUSED_TOKENS


_BASE_32 = ClipConfig(
    image_size=224,
    patch_size=32,
    vision_width=768,
    vision_layers=12,
    text_width=512,
    text_layers=12,
    embed_dim=512,
)
VARIANTS = {
    "ViT-B/32": _BASE_32,
    "ViT-B/16": dataclasses.replace(_BASE_32, patch_size=16),
    "ViT-L/14": ClipConfig(
        image_size=224,
        patch_size=14,
        vision_width=1024,
        vision_layers=24,
        text_width=768,
        text_layers=12,
        embed_dim=768,
    ),
    # Trains from scratch on a CPU; for demonstrations and tests.
    "tiny": ClipConfig(
        image_size=64,
        patch_size=16,
        vision_width=128,
        vision_layers=4,
        text_width=128,
        text_layers=2,
        embed_dim=128,
    ),
}

Shape = tuple[int, ...]

# The (parameter, axis) pairs that give each size. The most frequent value is taken, so that
# a tensor of the wrong shape disagrees with the result and can be reported by name.
SIZE_SOURCES: dict[str, tuple[tuple[str, int], ...]] = {
    "vision_width": (
        ("clip/visual/norm_pre/scale", 0),
        ("clip/visual/norm_post/scale", 0),
        ("clip/visual/class_embedding", 0),
        ("clip/visual/position_embedding", 1),
        ("clip/visual/projection", 0),
        ("clip/visual/tower/blocks/norm_1/scale", 0),
    ),
    "text_width": (
        ("clip/text/norm_final/scale", 0),
        ("clip/text/norm_final/bias", 0),
        ("clip/text/token_embedding", 1),
        ("clip/text/position_embedding", 1),
        ("clip/text/projection", 0),
        ("clip/text/tower/blocks/norm_1/scale", 0),
    ),
    "embed_dim": (
        ("clip/visual/projection", 1),
        ("clip/text/projection", 1),
        ("distill/stage_0/norm/scale", 0),
        ("distill/stage_0/norm/bias", 0),
        ("word_weight/dense_0/kernel", 0),
    ),
    "vision_mlp_dim": (
        ("clip/visual/tower/blocks/mlp_in/bias", 0),
        ("clip/visual/tower/blocks/mlp_in/kernel", 1),
        ("clip/visual/tower/blocks/mlp_out/kernel", 0),
    ),
    "text_mlp_dim": (
        ("clip/text/tower/blocks/mlp_in/bias", 0),
        ("clip/text/tower/blocks/mlp_in/kernel", 1),
        ("clip/text/tower/blocks/mlp_out/kernel", 0),
    ),
    "context_length": (("clip/text/position_embedding", 0),),
    "vocab_size": (("clip/text/token_embedding", 0),),
}


def from_shapes(
    shapes: Mapping[str, Sequence[Shape]], **known_sizes: Any
) -> tuple[ClipConfig, int]:
    """Infers the sizes and the number of distillation stages from the parameters' shapes.

    `shapes` has for each parameter a shape per layer of its stack. `known_sizes` are the
    fields that no shape determines: the head widths and the activation. The grids of
    patches and positions must be square.
    """
    inferred: dict[str, Any] = {
        size: _most_frequent(
            shape[axis]
            for path, axis in sources
            for shape in shapes.get(path, ())
            if axis < len(shape)
        )
        for size, sources in SIZE_SOURCES.items()
    }
    patch_size = math.isqrt(shapes["clip/visual/patch_embedding"][0][0] // 3)
    side = math.isqrt(shapes["clip/visual/position_embedding"][0][0] - 1)
    for tower in ("vision", "text"):
        if inferred[f"{tower}_mlp_dim"] == 4 * inferred[f"{tower}_width"]:
            inferred[f"{tower}_mlp_dim"] = None
    stages = {path.split("/")[1] for path in shapes if path.startswith("distill/")}
    sizes = ClipConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        vision_layers=len(shapes["clip/visual/tower/blocks/norm_1/scale"]),
        text_layers=len(shapes["clip/text/tower/blocks/norm_1/scale"]),
        **inferred,
        **known_sizes,
    )
    return sizes, len(stages)


def _most_frequent(values: Iterable[int]) -> int:
    return collections.Counter(values).most_common(1)[0][0]
