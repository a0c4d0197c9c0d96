"""A model that compiles in seconds, with random weights: none is exactly 0 or 1."""

import jax
import numpy as np

from hvp_jax.models.clip_config import ClipConfig

SIZES = ClipConfig(
    image_size=32,
    patch_size=16,
    vision_width=64,
    vision_layers=3,
    text_width=64,
    text_layers=2,
    embed_dim=32,
    context_length=32,
    vocab_size=128,
)
END = SIZES.vocab_size - 1


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def random_params(module, *inputs, scale: float = 0.1) -> dict:
    """Random float32 weights of a module: kernels scaled by fan-in, norm scales near 1."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)

    def draw(path, shape):
        w = rng.standard_normal(shape.shape)
        name = path[-1].key
        if name == "logit_scale":
            return np.float32(np.log(1 / 0.07))
        if name == "kernel":
            return np.float32(w / np.sqrt(np.prod(shape.shape[-2:]) / shape.shape[-1]))
        return np.float32((name == "scale") + scale * w)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def captions(seed: int, texts: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [texts, words] of varying length with start and end tokens, and their mask."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, END - 1, (texts, words)).astype(np.int32)
    ids[:, 0] = END - 1
    lengths = rng.integers(3, words + 1, texts)
    ids[np.arange(texts), lengths - 1] = END
    mask = np.arange(words) < lengths[:, None]
    return np.where(mask, ids, 0), mask


def clips(seed: int, count: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 frames [count, frames, 32, 32, 3], 0 where padded, and their mask."""
    rng = np.random.default_rng(seed)
    side = SIZES.image_size
    video = rng.integers(0, 256, (count, frames, side, side, 3), dtype=np.uint8)
    mask = np.arange(frames) < rng.integers(1, frames + 1, count)[:, None]
    return video * mask[:, :, None, None, None], mask
