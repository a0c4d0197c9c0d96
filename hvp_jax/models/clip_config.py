"""The sizes of a model, by name of a variant or as the shapes of its tensors tell them."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
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
    activation: str = "quick_gelu"  # quick_gelu, gelu
    vision_head_dim: int = 64  # width of an attention head
    text_head_dim: int = 64
    vision_mlp_dim: int | None = None  # None: four times the width
    text_mlp_dim: int | None = None


class ModelSpec(NamedTuple):
    """What the weights of a model tell of it."""

    clip_config: ClipConfig
    taps: tuple[int, ...] | None = None  # None: they do not tell
    stages: int = 0  # of distillation; 0: there are no weights, or CLIP's alone
    pretrained: bool = False  # training began, or begins, from weights of elsewhere


VARIANTS = {
    "ViT-B/32": ClipConfig(224, 32, 768, 12, 512, 12, 512),
    "ViT-B/16": ClipConfig(224, 16, 768, 12, 512, 12, 512),
    "ViT-L/14": ClipConfig(224, 14, 1024, 24, 768, 12, 768),
    # Trains from scratch on a CPU; for demonstrations and tests.
    "tiny": ClipConfig(64, 16, 128, 4, 128, 2, 128),
}

Shape = tuple[int, ...]

# Which axes of which parameters tell a size. Several do, and the most frequent answer is
# taken: a tensor of another shape is then the odd one out, and can be named.
SIZE_SOURCES = {
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


def from_shapes(shapes: Mapping[str, Sequence[Shape]], **told: object) -> tuple[ClipConfig, int]:
    """Shapes of our parameters, of every layer of a stack -> sizes, and stages of distillation.

    `told` are the sizes that no shape tells: the widths of heads, the activation. The grids
    of patches and positions must be squares.
    """
    found = {
        size: _most_frequent(
            shape[axis]
            for path, axis in witnesses
            for shape in shapes.get(path, ())
            if axis < len(shape)
        )
        for size, witnesses in SIZE_SOURCES.items()
    }
    patch_size = math.isqrt(shapes["clip/visual/patch_embedding"][0][0] // 3)
    side = math.isqrt(shapes["clip/visual/position_embedding"][0][0] - 1)
    for tower in ("vision", "text"):
        if found[f"{tower}_mlp_dim"] == 4 * found[f"{tower}_width"]:
            found[f"{tower}_mlp_dim"] = None
    stages = {path.split("/")[1] for path in shapes if path.startswith("distill/")}
    sizes = ClipConfig(
        image_size=side * patch_size,
        patch_size=patch_size,
        vision_layers=len(shapes["clip/visual/tower/blocks/norm_1/scale"]),
        text_layers=len(shapes["clip/text/tower/blocks/norm_1/scale"]),
        **found,
        **told,
    )
    return sizes, len(stages)


def _most_frequent(values) -> int:
    return collections.Counter(values).most_common(1)[0][0]
