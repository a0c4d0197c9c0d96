"""The blocks of a vision tower, arranged for a TPU.

It computes what the plain tower computes from the same parameters, with less traffic between the
chip and its memory:

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
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from hvp_jax.models.kernels.self_attention import (
    self_attention,
    self_attention_gradient,
)
from hvp_jax.models.layers import ACTIVATIONS
from hvp_jax.models.tower.folding import Layers, fold_layers
from hvp_jax.models.tower.row_norm import (
    RowStats,
    normalize_rows,
    normalize_rows_gradient,
    row_stats,
)


class Spec(NamedTuple):
    """The static sizes and settings of a tower."""

    tokens: int
    head_dim: int
    taps: tuple[int, ...]  # layers counted from 1, increasing
    activation: str
    save_hidden: bool  # False: save only the output of every layer for the gradient


class Saved(NamedTuple):
    """What the forward pass saves for the gradient, stacked by layer."""

    inputs: jax.Array  # [L, rows, width]
    stats: RowStats  # of `inputs`
    # Of the MLPs; None if the gradient computes them again.
    middles: jax.Array | None  # [L, rows, width], the inputs
    middle_stats: RowStats | None
    hiddens: jax.Array | None  # [L, rows, mlp width], before the activation


def _rows_minor(x: jax.Array) -> jax.Array:
    """The same array with its rows side by side in memory.

    The compiler chooses this layout inside the loops. Left to itself it would change that of the
    whole stack for the taps, and that of a tap's gradient in every iteration.
    """
    *leading, rows, columns = range(x.ndim)
    return with_layout_constraint(x, Layout((*leading, columns, rows)))


def _empty(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.empty(x.shape, x.dtype), shapes)


def _write(stacks: Any, values: Any, i: jax.Array) -> Any:
    """Writes values, cast to the dtype of their stacks, at layer i."""
    put = jax.lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda stack, x: put(stack, x.astype(stack.dtype), i, 0), stacks, values)


def _at(stacks: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), stacks)


def _attend(x: jax.Array, stats: RowStats, layer: Layers, spec: Spec) -> jax.Array:
    """The first half of a block: x plus its attention."""
    with jax.named_scope("qkv"):
        qkv = normalize_rows(x, stats).astype(x.dtype) @ layer.qkv
    y = self_attention(qkv, layer.qkv_bias, spec.tokens, spec.head_dim)
    with jax.named_scope("attention_out"):
        return x + (y @ layer.attention_out + layer.attention_out_bias)


@jax.named_scope("mlp_in")
def _mlp_in(x: jax.Array, stats: RowStats, layer: Layers) -> jax.Array:
    """The second half of a block up to its hidden layer, before the activation."""
    return normalize_rows(x, stats).astype(x.dtype) @ layer.mlp_in + layer.mlp_in_bias


@jax.named_scope("mlp_out")
def _mlp_out(x: jax.Array, hidden: jax.Array, layer: Layers, spec: Spec) -> jax.Array:
    """The rest of a block."""
    y = ACTIVATIONS[spec.activation](hidden)
    return x + (y @ layer.mlp_out + layer.mlp_out_bias)


def _forward_loop(
    x: jax.Array, layers: Layers, spec: Spec, save_hidden: bool
) -> tuple[jax.Array, Saved]:
    """The taps, and what is saved."""
    depth, rows = layers.qkv.shape[0], x.shape[0]
    of_inputs = x, row_stats(x)
    of_mlp = (*of_inputs, jax.ShapeDtypeStruct((rows, layers.mlp_in.shape[2]), x.dtype))
    stacks = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((depth, *x.shape), x.dtype),
        Saved(*of_inputs, *(of_mlp if save_hidden else (None, None, None))),
    )

    def block(i, carry):
        x, stats, saved = carry
        layer = _at(layers, i)
        middle = _attend(x, stats, layer, spec)
        middle_stats = row_stats(middle)
        hidden, hiddens = _mlp_in(middle, middle_stats, layer), None
        if save_hidden:
            # Read back where it was written, so that no copy is written for the next product.
            hiddens = jax.lax.optimization_barrier(_write(saved.hiddens, hidden, i))
            hidden = _at(hiddens, i)
        out = _mlp_out(middle, hidden, layer, spec)
        of_mlp = (middle, middle_stats) if save_hidden else (None, None)
        return out, row_stats(out), Saved(*_write(saved[:4], (x, stats, *of_mlp), i), hiddens)

    out, _, saved = jax.lax.fori_loop(0, depth, block, (*of_inputs, _empty(stacks)))
    # The output of layer t, counted from 1, is the input of the next one.
    taps = [saved.inputs[tap] if tap < depth else out for tap in spec.taps]
    return jnp.stack([_rows_minor(tap) for tap in taps]), saved


def _column_sum(x: jax.Array) -> jax.Array:
    return x.sum(axis=0, dtype=jnp.float32)


def _mlp_gradient(
    d_out: jax.Array, x: jax.Array, stats: RowStats, hidden: jax.Array, layer: Layers, spec: Spec
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """From the gradient of a block's output, that of its middle and of the MLP's weights."""
    with jax.named_scope("mlp_out"):
        y, activation_vjp = jax.vjp(ACTIVATIONS[spec.activation], hidden)
        grads = {"mlp_out": y.T @ d_out, "mlp_out_bias": _column_sum(d_out)}
        (d_hidden,) = activation_vjp(d_out @ layer.mlp_out.T)
    with jax.named_scope("mlp_in"):
        normed = normalize_rows(x, stats).astype(x.dtype)
        grads |= {"mlp_in": normed.T @ d_hidden, "mlp_in_bias": _column_sum(d_hidden)}
        d_norm = normalize_rows_gradient(x, stats, d_hidden @ layer.mlp_in.T)
        return (d_out + d_norm).astype(x.dtype), grads


def _attention_gradient(
    d_middle: jax.Array, x: jax.Array, stats: RowStats, layer: Layers, spec: Spec
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """From the gradient of a block's middle, that of its input and of the attention's weights."""
    with jax.named_scope("attention_out"):
        d_y = d_middle @ layer.attention_out.T
    with jax.named_scope("qkv"):
        normed = normalize_rows(x, stats).astype(x.dtype)
        qkv = normed @ layer.qkv
    y, d_qkv, d_qkv_bias = self_attention_gradient(
        qkv, layer.qkv_bias, d_y, spec.tokens, spec.head_dim
    )
    with jax.named_scope("attention_out"):
        grads = {"attention_out": y.T @ d_middle, "attention_out_bias": _column_sum(d_middle)}
    with jax.named_scope("qkv"):
        grads |= {"qkv": normed.T @ d_qkv, "qkv_bias": d_qkv_bias}
        return d_middle + normalize_rows_gradient(x, stats, d_qkv @ layer.qkv.T), grads


def _tower_backward(
    spec: Spec, residuals: tuple[Layers, Saved], d_taps: jax.Array
) -> tuple[jax.Array, Layers]:
    layers, saved = residuals
    depth = layers.qkv.shape[0]
    d_taps = _rows_minor(d_taps)

    def of_tap(i):
        """The gradient of the output of layer i, counted from 1, that comes from its tap."""
        # Scalar arithmetic instead of a table, whose reads the compiler moves out of the sum.
        slot = sum(jnp.int32(i > tap) for tap in spec.taps[:-1])
        tapped = functools.reduce(jnp.logical_or, [i == tap for tap in spec.taps])
        return jnp.where(tapped, _at(d_taps, slot), 0)

    def block(step, carry):
        dx, grads = carry
        i = depth - 1 - step
        layer, (x, stats, *of_mlp) = _at((layers, saved), i)
        # A copy of its own is read faster than a layer of the stack, by three products.
        x = jax.lax.optimization_barrier(x)
        if saved.hiddens is None:
            middle = _attend(x, stats, layer, spec)
            middle_stats = row_stats(middle)
            of_mlp = middle, middle_stats, _mlp_in(middle, middle_stats, layer)
        d_middle, mlp_grads = _mlp_gradient(dx, *of_mlp, layer, spec)
        d_input, attention_grads = _attention_gradient(d_middle, x, stats, layer, spec)
        dx = (d_input + of_tap(i)).astype(x.dtype)
        return dx, _write(grads, Layers(**mlp_grads, **attention_grads), i)

    return jax.lax.fori_loop(0, depth, block, (of_tap(depth), _empty(layers)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tower(x: jax.Array, layers: Layers, spec: Spec) -> jax.Array:
    """[rows, width] -> [taps, rows, width]: the outputs of the tapped layers."""
    return _forward_loop(x, layers, spec, save_hidden=False)[0]


def _tower_forward(
    x: jax.Array, layers: Layers, spec: Spec
) -> tuple[jax.Array, tuple[Layers, Saved]]:
    taps, saved = _forward_loop(x, layers, spec, spec.save_hidden)
    return taps, (layers, saved)


_tower.defvjp(_tower_forward, _tower_backward)


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
    return _tower(rows, fold_layers(blocks, x.dtype), spec).reshape(len(taps), *x.shape)
