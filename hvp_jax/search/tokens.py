"""Distilled tokens as integers: fixed point with one scale for each token.

The components of a token of unit length are small: 16 bits of fixed point keep more of them than
the 11 significant bits of float16.
"""

import numpy as np
from jaxtyping import Array, Float, Integer

KINDS: dict[str, type[np.signedinteger]] = {"int16": np.int16, "int8": np.int8}


def quantize(
    tokens: Float[np.ndarray, "*shape d"], kind: str
) -> tuple[Integer[np.ndarray, "*shape d"], Float[np.ndarray, "*shape"]]:
    """Tokens as integers of `kind`, and the scale of each: integers x scale are the tokens."""
    limit = np.iinfo(KINDS[kind]).max
    scale = np.abs(tokens).max(axis=-1) / np.float32(limit)
    rounded = np.rint(tokens / np.where(scale > 0, scale, 1)[..., None])
    return rounded.astype(KINDS[kind]), scale.astype(np.float32)


def dequantize(
    integers: Integer[Array | np.ndarray, "*shape d"], scale: Float[Array | np.ndarray, "*shape"]
) -> Float[Array | np.ndarray, "*shape d"]:
    """The tokens, in float32."""
    return integers.astype(np.float32) * scale[..., None]
