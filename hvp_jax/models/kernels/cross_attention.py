"""Attention of the merged tokens of a sample to all its tokens, as one TPU kernel.

The logits of a sample, [heads, queries, keys], stay on the chip: with 64 frames they are 160 MB in
float32. A step of the grid takes some queries of some heads, and all keys; the gradient computes
the weights again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from hvp_jax.models.clip_config import LANES
from hvp_jax.models.kernels.products import dot

MAX_LOGITS = 2**18  # of a head in one step; several arrays of them have to fit


def _weights(query: jax.Array, key: jax.Array, bias_ref, scale: float) -> jax.Array:
    logits = dot(query, key, 1, 1) * scale + bias_ref[0]
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _heads(ref, head_dim: int, rows: jax.Array | None = None) -> list[jax.Array]:
    """[1, R, 128] -> each head's columns [R, head_dim]; rows that do not exist become 0."""
    x = ref[0]
    if rows is not None:
        x = jnp.where(rows, x, 0)
    return jnp.split(x, LANES // head_dim, axis=1)


def _forward_kernel(
    query_ref, key_ref, value_ref, bias_ref, out_ref, *, head_dim: int, scale: float
) -> None:
    heads = (_heads(ref, head_dim) for ref in (query_ref, key_ref, value_ref))
    out = [
        dot(_weights(query, key, bias_ref, scale).astype(value.dtype), value, 1, 0)
        for query, key, value in zip(*heads, strict=True)
    ]
    out_ref[0] = jnp.concatenate(out, axis=1).astype(out_ref.dtype)


def _gradient_kernel(
    query_ref,
    key_ref,
    value_ref,
    bias_ref,
    d_out_ref,
    d_query_ref,
    d_key_ref,
    d_value_ref,
    d_bias_ref,
    d_key_sum,
    d_value_sum,
    *,
    head_dim: int,
    scale: float,
    queries: int,
) -> None:
    """The gradients of keys, values and bias are sums over the blocks of queries."""
    block = query_ref.shape[1]
    first = pl.program_id(2) * block
    exists = first + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) < queries

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in (d_key_sum, d_value_sum, d_bias_ref):
            ref[...] = jnp.zeros_like(ref)

    d_queries, d_keys, d_values = [], [], []
    heads = zip(
        _heads(query_ref, head_dim, exists),
        _heads(key_ref, head_dim),
        _heads(value_ref, head_dim),
        _heads(d_out_ref, head_dim, exists),
        strict=True,
    )
    for query, key, value, d_out in heads:
        weights = _weights(query, key, bias_ref, scale)
        d_weights = dot(d_out, value, 1, 1)
        d_logits = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True))
        d_bias_ref[0] += d_logits.sum(axis=0, keepdims=True)
        d_logits = (d_logits * scale).astype(key.dtype)
        d_queries.append(dot(d_logits, key, 1, 0))
        d_keys.append(dot(d_logits, query, 0, 0))
        d_values.append(dot(weights.astype(value.dtype), d_out, 0, 0))
    d_query_ref[0] = jnp.concatenate(d_queries, axis=1).astype(d_query_ref.dtype)
    d_key_sum[...] += jnp.concatenate(d_keys, axis=1)
    d_value_sum[...] += jnp.concatenate(d_values, axis=1)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        d_key_ref[0] = d_key_sum[...].astype(d_key_ref.dtype)
        d_value_ref[0] = d_value_sum[...].astype(d_value_ref.dtype)


def _call(kernel, arrays: tuple, head_dim: int, products: int) -> tuple[jax.Array, ...]:
    """Runs a kernel over samples, tiles of heads and blocks of queries.

    `arrays`: query, key, value, bias [B, 1, N] and, for the gradient, that of the output.
    """
    query, key, _, bias, *d_out = arrays
    (batch, queries, width), keys = query.shape, key.shape[1]
    tiles, block = width // LANES, min(max(MAX_LOGITS // keys // 16 * 16, 16), queries)
    of_queries = pl.BlockSpec((1, block, LANES), lambda b, tile, i: (b, i, tile))
    of_keys = pl.BlockSpec((1, keys, LANES), lambda b, tile, i: (b, 0, tile))
    of_bias = pl.BlockSpec((1, 1, keys), lambda b, tile, i: (b, 0, 0))
    outs = [(of_queries, jax.ShapeDtypeStruct(query.shape, query.dtype))]
    if d_out:
        outs += 2 * [(of_keys, jax.ShapeDtypeStruct(key.shape, key.dtype))]
        by_tile = pl.BlockSpec((1, 1, keys), lambda b, tile, i: (b * tiles + tile, 0, 0))
        outs += [(by_tile, jax.ShapeDtypeStruct((batch * tiles, 1, keys), jnp.float32))]
    out_specs, out_shapes = zip(*outs, strict=True)
    blocks = pl.cdiv(queries, block)
    pairs = batch * blocks * block * keys
    call = pl.pallas_call(
        kernel,
        grid=(batch, tiles, blocks),
        in_specs=[of_queries, of_keys, of_keys, of_bias, *([of_queries] if d_out else [])],
        out_specs=out_specs,
        out_shape=out_shapes,
        scratch_shapes=2 * [pltpu.VMEM((keys, LANES), jnp.float32)] if d_out else [],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        # The compiler does not look into a kernel.
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * pairs * width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *out_shapes)),
            transcendentals=pairs * (width // head_dim),
        ),
        name="cross_attention_gradient" if d_out else "cross_attention",
    )
    return tuple(call(*arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, bias, head_dim: int, scale: float) -> jax.Array:
    return _forward(query, key, value, bias, head_dim, scale)[0]


def _forward(query, key, value, bias, head_dim, scale):
    kernel = functools.partial(_forward_kernel, head_dim=head_dim, scale=scale)
    (out,) = _call(kernel, (query, key, value, bias[:, None]), head_dim, products=2)
    return out, (query, key, value, bias)


def _backward(head_dim, scale, saved, d_out):
    query, key, value, bias = saved
    kernel = functools.partial(
        _gradient_kernel, head_dim=head_dim, scale=scale, queries=query.shape[1]
    )
    with jax.named_scope("attention"):
        arrays = query, key, value, bias[:, None], d_out
        *grads, d_bias = _call(kernel, arrays, head_dim, products=5)
        return *grads, d_bias.reshape(bias.shape[0], -1, bias.shape[1]).sum(axis=1)


_attend.defvjp(_forward, _backward)


@jax.named_scope("attention")
def cross_attention(
    query: Float[Array, "b m width"],
    key: Float[Array, "b n width"],
    value: Float[Array, "b n width"],
    bias: Float[Array, "b n"],
    heads: int,
) -> Float[Array, "b m width"]:
    """Softmax attention of m queries to n tokens, for heads side by side in the columns.

    `bias` is added to the logits of every query and head; -inf masks a token. Products take
    their factors in the dtype of the arguments; all else is float32.
    """
    head_dim = query.shape[2] // heads
    # A head that would cross a tile of columns is padded to one of its own.
    padded = head_dim if LANES % head_dim == 0 else -(-head_dim // LANES) * LANES

    def pad(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], heads, head_dim)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded - head_dim)))
        return x.reshape(*x.shape[:2], heads * padded)

    if padded > head_dim:
        query, key, value = map(pad, (query, key, value))
    y = _attend(query, key, value, bias.astype(jnp.float32), padded, head_dim**-0.5)
    if padded > head_dim:
        y = y.reshape(*y.shape[:2], heads, padded)[..., :head_dim]
    return y.reshape(*y.shape[:2], heads * head_dim)
