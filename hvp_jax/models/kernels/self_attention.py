"""Self-attention of short sequences as one TPU kernel, with its gradient.

Written for XLA, attention over the 50 tokens of a frame goes through memory a dozen times: logits
padded to tiles of 128, their maximum, exponentials, sums, each a pass of its own, and again in
the gradient. Here the tokens of some frames and of one tile of heads stay on the chip from the
products that give queries, keys and values to the weighted sum.

The rows of all frames form one matrix, [frames tokens, width], so that no axis is padded and
nothing is transposed. A tile is 128 columns: the heads of a tile are separated by masks instead of
slices, which the matrix unit takes at the same cost. Frames of at most 64 tokens share a product,
with a mask that is block-diagonal.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from hvp_jax.models.clip_config import LANES
from hvp_jax.models.kernels.products import dot

MASKED = -1e30  # a logit; -inf would make 0 times infinity in the gradient


def _split_heads(x: jax.Array, head_dim: int) -> jax.Array:
    """[C, 128] -> [H C, 128]: a copy for each head of the tile, 0 outside the head's columns."""
    head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), head_dim)
    return jnp.concatenate([jnp.where(head == h, x, 0) for h in range(LANES // head_dim)])


def _join_heads(x: jax.Array, head_dim: int) -> jax.Array:
    """[H C, 128] -> [C, 128]: of each copy the columns of its head."""
    copies = jnp.split(x, LANES // head_dim)
    head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, copies[0].shape, 1), head_dim)
    joined = copies[0]
    for h, copy in enumerate(copies[1:], 1):
        joined = jnp.where(head == h, copy, joined)
    return joined


def _same_frame(tokens: int, chunk: int, copies: int) -> jax.Array:
    """[copies C, C]: whether a query and a key are of the same frame."""
    shape = (copies * chunk, chunk)
    query = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, shape, 0), chunk)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return jax.lax.div(query, tokens) == jax.lax.div(key, tokens)


def _rows_per_chunk(tokens: int) -> int:
    """Rows of the frames that share a product: 1, 2, 4 or 8 frames of one tile if they fit."""
    return tokens * next(
        frames for frames in (8, 4, 2, 1) if frames * tokens <= LANES or frames == 1
    )


def _chunks(qkv_refs, bias_ref, tokens: int, head_dim: int):
    """For each chunk of frames: its rows, query (a copy for each head), key, value and weights.

    The weights are exp(logit - maximum) [H C, C] and their sums [H C, 1].
    """
    chunk = _rows_per_chunk(tokens)
    mask = _same_frame(tokens, chunk, LANES // head_dim) if chunk > tokens else None
    for first in range(0, qkv_refs[0].shape[0], chunk):
        rows = pl.ds(first, chunk)
        query, key, value = (
            ref[rows, :] + bias_ref[pl.ds(part, 1), :] for part, ref in enumerate(qkv_refs)
        )
        query = _split_heads(query, head_dim)
        logits = dot(query, key, 1, 1) * head_dim**-0.5
        if mask is not None:
            logits = jnp.where(mask, logits, MASKED)
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        yield rows, query, key, value, weights, weights.sum(axis=1, keepdims=True)


def _weighted_sum(weights: jax.Array, total: jax.Array, value: jax.Array, head_dim: int):
    summed = dot(weights.astype(value.dtype), value, 1, 0) / total
    return _join_heads(summed, head_dim).astype(value.dtype)


def _forward_kernel(*refs, tokens: int, head_dim: int) -> None:
    """Refs: query, key, value [rows, 128], their bias [3, 128] -> output [rows, 128]."""
    *qkv_refs, bias_ref, out_ref = refs
    for rows, _, _, value, weights, total in _chunks(qkv_refs, bias_ref, tokens, head_dim):
        out_ref[rows, :] = _weighted_sum(weights, total, value, head_dim)


def _gradient_kernel(*refs, tokens: int, head_dim: int) -> None:
    """Refs: as forward, the output's gradient -> output, gradients of query, key or value, of bias.

    The last axis of the grid is the part, query, key or value, whose gradient is written: all are
    computed in the first of its three steps and kept in `parts_ref` [3, rows, 128].
    """
    *qkv_refs, bias_ref, d_out_ref, out_ref, d_qkv_ref, d_bias_ref, parts_ref = refs

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        for rows, query, key, value, weights, total in _chunks(
            qkv_refs, bias_ref, tokens, head_dim
        ):
            out_ref[rows, :] = _weighted_sum(weights, total, value, head_dim)
            weights /= total
            d_out = _split_heads(d_out_ref[rows, :], head_dim)
            d_weights = dot(d_out, value, 1, 1)
            d_logits = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True))
            d_logits = (d_logits * head_dim**-0.5).astype(key.dtype)
            grads = (
                _join_heads(dot(d_logits, key, 1, 0), head_dim),
                # The sum over the copies keeps the heads apart: a copy is 0 outside its head.
                dot(d_logits, query, 0, 0),
                dot(weights.astype(value.dtype), d_out, 0, 0),
            )
            for part, grad in enumerate(grads):
                parts_ref[part, rows, :] = grad.astype(parts_ref.dtype)
                d_bias_ref[pl.ds(part, 1), :] += grad.sum(axis=0, keepdims=True)

    d_qkv_ref[...] = parts_ref[pl.program_id(2)]


def _frames_per_block(frames: int, tokens: int) -> int:
    """Frames that the kernel holds at once: a multiple of 8, about 2,000 rows at most."""
    most = 8 if tokens > LANES // 2 else 32
    return min(most, -(-frames // 8) * 8)


def _call(arrays: tuple, tokens: int, head_dim: int) -> tuple[jax.Array, ...]:
    """Runs a kernel over all blocks of frames and all tiles of heads.

    `arrays`: queries, keys and values, their bias and, for the gradient, that of the output.
    """
    qkv, bias, *d_out = arrays
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    tiles, block = width // LANES, tokens * _frames_per_block(rows // tokens, tokens)
    chunk, copies = _rows_per_chunk(tokens), LANES // head_dim
    of_part = [
        pl.BlockSpec((block, LANES), lambda tile, i, *_, part=part: (i, part * tiles + tile))
        for part in range(3)
    ]
    of_bias = pl.BlockSpec((3, LANES), lambda tile, i, *_: (0, tile))
    outs = [(of_part[0], jax.ShapeDtypeStruct((rows, width), qkv.dtype))]
    if d_out:
        by_part = pl.BlockSpec((block, LANES), lambda tile, i, part: (i, part * tiles + tile))
        outs += [(by_part, jax.ShapeDtypeStruct(qkv.shape, qkv.dtype))]
        outs += [(of_bias, jax.ShapeDtypeStruct(bias.shape, jnp.float32))]
    products = 6 if d_out else 2  # of [copies * chunk, chunk, 128] for each chunk and tile
    out_specs, out_shapes = zip(*outs, strict=True)
    kernel = _gradient_kernel if d_out else _forward_kernel
    call = pl.pallas_call(
        functools.partial(kernel, tokens=tokens, head_dim=head_dim),
        grid=(tiles, rows // block, *([3] if d_out else [])),
        in_specs=[*of_part, of_bias, *([of_part[0]] if d_out else [])],
        out_specs=out_specs,
        out_shape=out_shapes,
        scratch_shapes=[pltpu.VMEM((3, block, LANES), qkv.dtype)] if d_out else [],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(pltpu.PARALLEL, *(2 if d_out else 1) * [pltpu.ARBITRARY])
        ),
        # The compiler does not look into a kernel: what it computes, masked products included.
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * copies * rows * chunk * width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *out_shapes)),
            transcendentals=copies * rows * chunk * tiles,
        ),
        name="attention_gradient" if d_out else "attention",
    )
    return tuple(call(qkv, qkv, qkv, bias, *d_out))


def _pad(x: Float[Array, "rows d"], tokens: int) -> Float[Array, "padded d"]:
    """Adds frames of zeros up to a multiple of the frames of a block."""
    frames = x.shape[0] // tokens
    extra = -frames % _frames_per_block(frames, tokens)
    return jnp.pad(x, ((0, extra * tokens), (0, 0)))


@jax.named_scope("attention")
def self_attention(
    qkv: Float[Array, "rows three_width"],
    bias: Float[Array, " three_width"],
    tokens: int,
    head_dim: int,
) -> Float[Array, "rows width"]:
    """Softmax attention among the `tokens` rows of each frame, for every head.

    `qkv`: queries, keys and values without their `bias`. Products take their factors in the dtype
    of `qkv`; all else is float32.
    """
    arrays = _pad(qkv, tokens), bias.astype(qkv.dtype).reshape(3, -1)
    (out,) = _call(arrays, tokens, head_dim)
    return out[: qkv.shape[0]]


@jax.named_scope("attention")
def self_attention_gradient(
    qkv: Float[Array, "rows three_width"],
    bias: Float[Array, " three_width"],
    d_out: Float[Array, "rows width"],
    tokens: int,
    head_dim: int,
) -> tuple[
    Float[Array, "rows width"], Float[Array, "rows three_width"], Float[Array, " three_width"]
]:
    """The output of `self_attention`, and the gradients of `qkv` and, in float32, of `bias`."""
    arrays = _pad(qkv, tokens), bias.astype(qkv.dtype).reshape(3, -1), _pad(d_out, tokens)
    out, d_qkv, d_bias = _call(arrays, tokens, head_dim)
    return out[: qkv.shape[0]], d_qkv[: qkv.shape[0]], d_bias.reshape(-1)
