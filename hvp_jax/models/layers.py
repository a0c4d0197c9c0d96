"""Layers that several modules share, and the types of the model's inputs."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

# CLIP's, of pixels from 0 to 1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
Pixels = UInt8[Array, "n height columns"] | Float[Array, "n height columns"]
# The axes of width and channels may be one: an array in a TPU's memory whose last axis has 3
# elements takes 42 times its size.
Frames = (
    UInt8[Array, "b t height width 3"]
    | UInt8[Array, "b t height columns"]
    | Float[Array, "b t height width 3"]
    | Float[Array, "b t height columns"]
)
WordMask = Bool[Array, "b w"] | Int[Array, "b w"]
FrameMask = Bool[Array, "b t"] | Int[Array, "b t"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU with the error function (Flax's default is the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


def layer_norm(name: str) -> nn.LayerNorm:
    """CLIP's layer norm: epsilon 1e-5 and two-pass variance, in at least float32."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def by_row(
    layer: Callable[[jax.Array], jax.Array], x: Float[Array, "*shape d"]
) -> Float[Array, "*shape features"]:
    """Applies a dense layer to `x` reshaped to a matrix.

    On a CPU, XLA computes the gradient of a two-dimensional matrix product twice as fast as
    that of the same product with more axes; on other backends the reshape is free.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


@jax.named_scope("pixels")
def embed_patches(
    pixels: Pixels, kernel: Float[Array, "inputs width"], valid: Bool[Array, " n"], dtype: DTypeLike
) -> Float[Array, "n patches width"]:
    """The patch convolution: a product of every patch of a frame with its weights.

    A row of `pixels` has the three channels of every pixel: columns = 3 width. uint8 frames are
    normalised by the weights (0 to 255 are exact in bfloat16); float frames are normalised
    already. A frame that is not `valid` counts as normalised zeros.
    """
    patch = math.isqrt(kernel.shape[0] // 3)
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // (3 * patch)
    bias = jnp.zeros(kernel.shape[1:], dtype)
    if pixels.dtype == jnp.uint8:
        kernel, bias = fold_normalization(kernel)
    else:
        pixels = jnp.where(valid[:, None, None], pixels, 0)
    # Three channels as an axis of their own would be padded to 128 in a TPU's memory.
    x = pixels.reshape(-1, rows, patch, columns, 3 * patch).swapaxes(2, 3)
    x = x.reshape(-1, kernel.shape[0]).astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)
    return jnp.where(valid[:, None, None], x.reshape(-1, rows * columns, kernel.shape[1]), 0)


def fold_normalization(
    kernel: Float[Array, "inputs width"],
) -> tuple[Float[Array, "inputs width"], Float[Array, " width"]]:
    """Weights and bias for pixels from 0 to 255 that equal `kernel` for normalised pixels."""
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    mean, std = (
        jnp.tile(jnp.array(channels, kernel.dtype), kernel.shape[0] // 3)
        for channels in (PIXEL_MEAN, PIXEL_STD)
    )
    bias = -jnp.einsum("i,iw->w", mean / std, kernel, precision=jax.lax.Precision.HIGHEST)
    return kernel / (255 * std[:, None]), bias


@jax.named_scope("attention")
def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b n h d"],
    value: Float[Array, "b n h d"],
    bias: Float[Array, "#b 1 #q n"] | None = None,
) -> Float[Array, "b q h d"]:
    """Softmax attention of q queries over n tokens, with h heads of width d.

    `bias` is added to the logits; -inf masks a token. The softmax is in at least float32
    (`jax.nn.dot_product_attention` always uses float32, also for float64).
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("nqhd,nshd->nhqs", query, key, preferred_element_type=wide)
    if bias is not None:
        logits += bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Dividing the sum instead of each weight saves a pass over the largest array.
    total = weights.sum(axis=-1, keepdims=True)
    summed = jnp.einsum(
        "nhqs,nshd->nhqd", weights.astype(value.dtype), value, preferred_element_type=wide
    )
    return (summed / total).astype(value.dtype).swapaxes(1, 2)


class TokenWeight(nn.Module):
    """The small network that weights tokens, d -> 2d -> d -> 1 (paper section 3.3)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*shape d"]) -> Float[Array, "*shape"]:
        """Features before L2 normalisation -> raw weights."""
        shape, width = x.shape[:-1], x.shape[-1]
        x = x.astype(self.dtype).reshape(-1, width)
        x = nn.relu(nn.Dense(2 * width, dtype=self.dtype, name="dense_0")(x))
        x = nn.relu(nn.Dense(width, dtype=self.dtype, name="dense_1")(x))
        return nn.Dense(1, name="dense_2")(x).reshape(shape)
