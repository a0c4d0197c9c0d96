"""A tower's parameters as the weights that its loop for TPUs uses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Layers(NamedTuple):
    """The weights of all layers, stacked; the norms' scale and bias are in `qkv` and `mlp_in`."""

    qkv: jax.Array  # [L, width, 3 width]
    qkv_bias: jax.Array
    attention_out: jax.Array
    attention_out_bias: jax.Array
    mlp_in: jax.Array
    mlp_in_bias: jax.Array
    mlp_out: jax.Array
    mlp_out_bias: jax.Array


def _fold(norm: dict, dense: dict) -> tuple[jax.Array, jax.Array]:
    """The dense layer that takes a norm's output before its scale and bias."""
    kernel = norm["scale"][..., None] * dense["kernel"]
    bias = jnp.einsum(
        "lw,lwf->lf", norm["bias"], dense["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    return kernel, bias + dense["bias"]


def fold_layers(blocks: dict, dtype: DTypeLike) -> Layers:
    """The parameters of the plain tower, stacked by layer -> the weights of the loop."""
    qkv, qkv_bias = _fold(blocks["norm_1"], blocks["qkv"])
    mlp_in, mlp_in_bias = _fold(blocks["norm_2"], blocks["mlp_in"])
    layers = Layers(
        qkv,
        qkv_bias,
        blocks["attention_out"]["kernel"],
        blocks["attention_out"]["bias"],
        mlp_in,
        mlp_in_bias,
        blocks["mlp_out"]["kernel"],
        blocks["mlp_out"]["bias"],
    )
    return jax.tree.map(lambda x: x.astype(dtype), layers)
