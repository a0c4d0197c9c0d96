"""The kernels for TPUs, in Pallas' interpreter, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import layers
from hvp_jax.models.distillation.stage import grouped_attention
from hvp_jax.models.kernels import cross_attention, self_attention
from tests.helpers.small import normal

pytestmark = pytest.mark.usefixtures("quick_compile", "interpreted_kernels")


def assert_close(ours, expected, tolerance):
    """Relative to the greatest value."""
    ours, expected = np.float32(ours), np.float32(expected)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(ours / scale, expected / scale, atol=tolerance)


TOLERANCES = {"float32": 2e-6, "bfloat16": 1e-2}


def plain_attention(qkv, bias, tokens, head_dim):
    heads = (-1, tokens, qkv.shape[1] // 3 // head_dim, head_dim)
    parts = (part.reshape(heads) for part in jnp.split(qkv + bias.astype(qkv.dtype), 3, axis=1))
    return layers.attention(*parts).reshape(qkv.shape[0], -1)


# Tokens, frames, width of a head, width: one, two and eight frames in a product, heads of all
# widths, frames that do not fill a block.
SIZES = {
    "pairs of frames": (50, 4, 64, 256, "float32"),
    "pairs of frames, bfloat16": (50, 4, 64, 256, "bfloat16"),
    "eight frames in a product": (5, 9, 32, 128, "float32"),
    "frames longer than a tile": (131, 2, 64, 128, "bfloat16"),
    "one head in a tile": (10, 3, 128, 128, "float32"),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_kernel_and_its_gradient_equal_plain_attention(sizes):
    tokens, frames, head_dim, width, dtype = sizes
    rows = tokens * frames
    qkv, bias = jnp.asarray(normal(0, rows, 3 * width), dtype), jnp.float32(normal(1, 3 * width))
    d_out = jnp.asarray(normal(2, rows, width), dtype)
    expected, vjp = jax.vjp(lambda *x: plain_attention(*x, tokens, head_dim), qkv, bias)
    d_qkv, d_bias = vjp(d_out)

    static = {"tokens": tokens, "head_dim": head_dim}
    out = jax.jit(functools.partial(self_attention.self_attention, **static))(qkv, bias)
    gradient = jax.jit(functools.partial(self_attention.self_attention_gradient, **static))
    again, *grads = gradient(qkv, bias, d_out)
    np.testing.assert_array_equal(out, again)
    for ours, theirs in zip((out, *grads), (expected, d_qkv, d_bias), strict=True):
        assert_close(ours, theirs, TOLERANCES[dtype])


# Queries, keys, heads, width: blocks of queries with a remainder, heads of all widths.
CROSS_SIZES = {
    "two heads in a tile": (6, 11, 2, 128, "float32"),
    "bfloat16": (6, 11, 4, 256, "bfloat16"),
    "heads that are padded": (5, 9, 2, 192, "float32"),
    "three blocks of queries": (40, 80, 2, 128, "float32"),
}


@pytest.mark.parametrize("sizes", CROSS_SIZES.values(), ids=CROSS_SIZES)
def test_the_cross_attention_and_its_gradient_equal_plain_attention(sizes, monkeypatch):
    queries, keys, heads, width, dtype = sizes
    monkeypatch.setattr(cross_attention, "MAX_LOGITS", 16 * 80)
    arrays = [
        jnp.asarray(normal(i, 2, n, width), dtype) for i, n in enumerate((queries, keys, keys))
    ]
    counts = np.array([[keys], [keys - 4]])
    bias = jnp.float32(np.where(np.arange(keys) < counts, normal(3, 2, keys), -np.inf))
    d_out = jnp.asarray(normal(4, 2, queries, width), dtype)

    def plain(query, key, value, bias):
        parts = [x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value)]
        return grouped_attention(*parts, bias).reshape(query.shape)

    def fused(*arrays):
        return cross_attention.cross_attention(*arrays, heads)

    results = []
    for attend in (fused, plain):
        out, vjp = jax.vjp(jax.jit(attend), *arrays, bias)
        results.append((out, *vjp(d_out)))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        assert_close(ours, expected, TOLERANCES[dtype])
