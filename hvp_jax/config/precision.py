"""The types in which a run computes and stores its weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict


def enable_float64(config: ConfigDict) -> None:
    """Enables float64 in JAX if `precision` is float64. Must run before any computation."""
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)


def cast_params(params: Any, compute_dtype: DTypeLike) -> Any:
    """Weights in the type in which they are stored: float64 if computed in it, else float32."""
    dtype = jnp.promote_types(compute_dtype, jnp.float32)
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)
