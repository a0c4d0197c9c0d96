"""The blocks of a vision tower, arranged for a TPU.

It computes what `hvp_jax.models.tower.tower.Tower` computes from the same parameters, with less traffic
between the chip and its memory:

- all tokens of all frames are the rows of one matrix, which needs no padding and no transpose;
- attention is one kernel;
- scale and bias of a norm are folded into the dense layer behind it, so that the gradient of a norm
  has two sums over a row and none over a column;
- the gradient is written out as a loop: what is saved is written where it is computed, and the taps
  are layers of what is saved.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.layers import ACTIVATIONS
from hvp_jax.models.tower.attention_kernel import (
    LANES,
    MAX_TOKENS,
    group_columns,
    self_attention,
    self_attention_gradient,
)

HIGHEST = jax.lax.Precision.HIGHEST
EPSILON = 1e-5  # of CLIP's layer norms


class Spec(NamedTuple):
    """The static sizes and settings of a tower."""

    tokens: int
    head_dim: int
    taps: tuple[int, ...]  # layers counted from 1, increasing
    activation: str
    save_hidden: bool  # False: save only the output of every layer for the gradient


class Layers(NamedTuple):
    """The weights of all layers, stacked; the norms' scale and bias are in `qkv` and `mlp_in`."""

    qkv: jax.Array  # [L, width, 3 width], columns as `group_columns` orders them
    qkv_bias: jax.Array
    attention_out: jax.Array
    attention_out_bias: jax.Array
    mlp_in: jax.Array
    mlp_in_bias: jax.Array
    mlp_out: jax.Array
    mlp_out_bias: jax.Array


class RowStats(NamedTuple):
    """Mean of every row, and the inverse of its standard deviation; float32."""

    mean: jax.Array  # [rows]
    inverse: jax.Array  # [rows]


def _fold(norm: dict, dense: dict) -> tuple[jax.Array, jax.Array]:
    """The dense layer that takes a norm's output before its scale and bias."""
    kernel = norm["scale"][..., None] * dense["kernel"]
    bias = jnp.einsum("lw,lwf->lf", norm["bias"], dense["kernel"], precision=HIGHEST)
    return kernel, bias + dense["bias"]


def fold_layers(blocks: dict, dtype: DTypeLike) -> Layers:
    """The parameters of `tower.Tower`, stacked by layer -> the weights that the loop uses."""
    qkv, qkv_bias = _fold(blocks["norm_1"], blocks["qkv"])
    mlp_in, mlp_in_bias = _fold(blocks["norm_2"], blocks["mlp_in"])
    layers = Layers(
        group_columns(qkv),
        group_columns(qkv_bias),
        *(blocks["attention_out"][name] for name in ("kernel", "bias")),
        mlp_in,
        mlp_in_bias,
        *(blocks["mlp_out"][name] for name in ("kernel", "bias")),
    )
    return jax.tree.map(lambda x: x.astype(dtype), layers)


def row_stats(x: Float[Array, "rows width"]) -> RowStats:
    """Mean and inverse standard deviation of every row, in float32.

    One pass for bfloat16: the error of E[x²] - E[x]² is far below the rounding of x itself.
    """
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=1)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.square(wide).mean(axis=1) - jnp.square(mean), 0)
    else:
        variance = jnp.square(wide - mean[:, None]).mean(axis=1)
    return RowStats(mean, jax.lax.rsqrt(variance + EPSILON))


def _centre(x: jax.Array, stats: RowStats) -> jax.Array:
    return (x.astype(jnp.float32) - stats.mean[:, None]) * stats.inverse[:, None]


def normalize_rows(x: Float[Array, "rows width"], stats: RowStats) -> Float[Array, "rows width"]:
    """Layer norm without scale and bias, in float32."""
    return (x.astype(jnp.float32) - stats.mean[:, None]) * stats.inverse[:, None]


def normalize_rows_gradient(
    x: Float[Array, "rows width"], stats: RowStats, grad: Float[Array, "rows width"]
) -> Float[Array, "rows width"]:
    """The gradient of `x` from that of `normalize_rows`, through the statistics too."""
    normed, grad = normalize_rows(x, stats), grad.astype(jnp.float32)
    along = (grad * normed).mean(axis=1, keepdims=True)
    return (grad - grad.mean(axis=1, keepdims=True) - normed * along) * stats.inverse[:, None]


class Saved(NamedTuple):
    """What the forward pass saves for the gradient, stacked by layer."""

    inputs: jax.Array  # [L, rows, width]
    stats: RowStats  # of `inputs`
    middles: jax.Array  # [L, rows, width], the inputs of the MLPs
    middle_stats: RowStats
    hiddens: jax.Array  # [L, rows, mlp width], before the activation


def _write(stack: jax.Array, value: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), i, 0)


def _at(stacks: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), stacks)


def _stacked(count: int, *values: Any) -> Any:
    """Memory for `count` values of the shape and dtype of each argument."""
    return jax.tree.map(lambda x: jax.lax.empty((count, *x.shape), x.dtype), values)


def _attend(x: jax.Array, stats: RowStats, layer: Layers, spec: Spec) -> jax.Array:
    """The first half of a block: x plus its attention."""
    with jax.named_scope("qkv"):
        qkv = normalize_rows(x, stats).astype(x.dtype) @ layer.qkv
    with jax.named_scope("attention"):
        y = self_attention(qkv, layer.qkv_bias, spec.tokens, spec.head_dim)
    with jax.named_scope("attention_out"):
        return x + (y @ layer.attention_out + layer.attention_out_bias)


def _mlp_in(x: jax.Array, stats: RowStats, layer: Layers) -> jax.Array:
    """The second half of a block up to the hidden layer, before its activation."""
    with jax.named_scope("mlp_in"):
        return normalize_rows(x, stats).astype(x.dtype) @ layer.mlp_in + layer.mlp_in_bias


def _mlp_out(x: jax.Array, hidden: jax.Array, layer: Layers, spec: Spec) -> jax.Array:
    """The rest of a block."""
    with jax.named_scope("mlp_out"):
        y = ACTIVATIONS[spec.activation](hidden)
        return x + (y @ layer.mlp_out + layer.mlp_out_bias)


def _run_forward(x, layers, spec):
    depth = layers.qkv.shape[0]
    stats = row_stats(x)
    hidden = jax.ShapeDtypeStruct((x.shape[0], layers.mlp_in.shape[2]), x.dtype)
    empty = Saved(*_stacked(depth, x, stats, x, stats, hidden))

    def block(i, carry):
        x, stats, saved = carry
        layer = _at(layers, i)
        middle = _attend(x, stats, layer, spec)
        middle_stats = row_stats(middle)
        hiddens = _write(saved.hiddens, _mlp_in(middle, middle_stats, layer), i)
        # Read back where it was written, so that no second copy is written for the next product.
        hiddens = jax.lax.optimization_barrier(hiddens)
        out = _mlp_out(middle, _at(hiddens, i), layer, spec)
        values = x, stats, middle, middle_stats
        *others, _ = saved
        written = jax.tree.map(lambda stack, value: _write(stack, value, i), tuple(others), values)
        return out, row_stats(out), Saved(*written, hiddens)

    out, _, saved = jax.lax.fori_loop(0, depth, block, (x, stats, empty))
    # The output of layer t, counted from 1, is the input of the next one.
    taps = [saved.inputs[tap] if tap < depth else out for tap in spec.taps]
    return jnp.stack(taps), (layers, saved)


def _run_backward(spec, residuals, d_taps):
    layers, saved = residuals
    depth = layers.qkv.shape[0]
    slots = np.full(depth + 1, len(spec.taps), np.int32)
    slots[np.array(spec.taps)] = np.arange(len(spec.taps))
    slots = jnp.asarray(slots)

    def tap(i):
        """The gradient of the output of layer i that comes from its tap, if it has one."""
        slot = jnp.minimum(slots[i], len(spec.taps) - 1)
        return jnp.where(slots[i] < len(spec.taps), _at(d_taps, slot).astype(jnp.float32), 0)

    def block(step, carry):
        dx, grads = carry
        i = depth - 1 - step
        layer, x, stats = _at((layers, saved.inputs, saved.stats), i)
        x = jax.lax.optimization_barrier(x)
        middle, middle_stats, hidden = _at((saved.middles, saved.middle_stats, saved.hiddens), i)
        dtype = x.dtype

        with jax.named_scope("mlp_out"):
            y, activation_vjp = jax.vjp(ACTIVATIONS[spec.activation], hidden)
            d_mlp_out, d_mlp_out_bias = y.T @ dx, dx.sum(axis=0, dtype=jnp.float32)
            (d_hidden,) = activation_vjp(dx @ layer.mlp_out.T)
        with jax.named_scope("mlp_in"):
            d_mlp_in = normalize_rows(middle, middle_stats).astype(dtype).T @ d_hidden
            d_mlp_in_bias = d_hidden.sum(axis=0, dtype=jnp.float32)
            d_norm = normalize_rows_gradient(middle, middle_stats, d_hidden @ layer.mlp_in.T)
            d_middle = (dx + d_norm).astype(dtype)
        with jax.named_scope("qkv"):
            normed = normalize_rows(x, stats).astype(dtype)
            qkv = normed @ layer.qkv
        with jax.named_scope("attention"):
            d_y = d_middle @ layer.attention_out.T
            y, d_qkv, d_qkv_bias = self_attention_gradient(
                qkv, layer.qkv_bias, d_y, spec.tokens, spec.head_dim
            )
        with jax.named_scope("attention_out"):
            d_attention_out, d_attention_out_bias = (
                y.T @ d_middle,
                d_middle.sum(axis=0, dtype=jnp.float32),
            )
        with jax.named_scope("qkv"):
            d_qkv_kernel = normed.T @ d_qkv
            d_norm = normalize_rows_gradient(x, stats, d_qkv @ layer.qkv.T)
            dx = (d_middle + d_norm + tap(i)).astype(dtype)
        grad = Layers(
            d_qkv_kernel,
            d_qkv_bias,
            d_attention_out,
            d_attention_out_bias,
            d_mlp_in,
            d_mlp_in_bias,
            d_mlp_out,
            d_mlp_out_bias,
        )
        return dx, jax.tree.map(lambda stack, g: _write(stack, g, i), grads, grad)

    grads = jax.tree.map(lambda x: jax.lax.empty(x.shape, x.dtype), layers)
    last = tap(depth).astype(saved.inputs.dtype)
    return jax.lax.fori_loop(0, depth, block, (last, grads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _run(x: jax.Array, layers: Layers, spec: Spec) -> jax.Array:
    """[rows, width] -> [taps, rows, width]: the outputs of the tapped layers."""
    return _run_forward(x, layers, spec)[0]


_run.defvjp(_run_forward, _run_backward)


def supports(config: ClipConfig) -> bool:
    """Whether the kernel takes the vision tower of a model."""
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    width, head_dim = config.vision_width, config.vision_head_dim
    return width % LANES == 0 and LANES % head_dim == 0 and tokens <= MAX_TOKENS


def run_blocks(
    x: Float[Array, "n tokens width"],
    blocks: dict,
    *,
    taps: tuple[int, ...],
    head_dim: int,
    activation: str,
    remat: str,
) -> Float[Array, "taps n tokens width"]:
    """The hidden states of the tapped layers, as `tower.Tower` returns them.

    `blocks`: its parameters. With `remat` "full" only the output of every layer is saved for
    the gradient, otherwise also the input and the hidden layer of its MLP.
    """
    spec = Spec(x.shape[1], head_dim, taps, activation, save_hidden=remat != "full")
    rows = x.reshape(-1, x.shape[2])
    return _run(rows, fold_layers(blocks, x.dtype), spec).reshape(len(taps), *x.shape)
