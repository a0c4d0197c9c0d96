"""The sizes of a model. Heads are 64 wide, so their number is not a size of its own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int
    context_length: int = 77
    vocabulary: int = 49408
    activation: str = "quick_gelu"  # quick_gelu, gelu


VARIANTS = {
    "ViT-B/32": Sizes(224, 32, 768, 12, 512, 12, 512),
    "ViT-B/16": Sizes(224, 16, 768, 12, 512, 12, 512),
    "ViT-L/14": Sizes(224, 14, 1024, 24, 768, 12, 768),
    # Trains from scratch on a CPU; for demonstrations and tests.
    "tiny": Sizes(64, 16, 128, 4, 128, 2, 128),
}
