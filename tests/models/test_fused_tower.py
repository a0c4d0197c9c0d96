"""The tower arranged for TPUs against the plain one; its kernels run in Pallas' interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from hvp_jax.models import layers
from hvp_jax.models.kernels import self_attention as attention_kernel
from hvp_jax.models.tower.row_norm import row_stats
from hvp_jax.models.tower.tower import Tower
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    call = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", lambda *a, **k: call(*a, **k, interpret=True))


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

    out = attention_kernel.self_attention(qkv, bias, tokens, head_dim)
    again, *grads = attention_kernel.self_attention_gradient(qkv, bias, d_out, tokens, head_dim)
    np.testing.assert_array_equal(out, again)
    tolerance = 2e-5 if dtype == "float32" else 3e-2
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(*(np.float32(x) for x in (out, expected)), **close)
    np.testing.assert_allclose(*(np.float32(x) for x in (grads[0], d_qkv)), **close)
    # The bias of the keys has no effect: a constant in every logit of a query.
    scale = np.abs(np.float32(d_bias)).max()
    np.testing.assert_allclose(grads[1] / scale, np.float32(d_bias) / scale, atol=tolerance)


def towers(dtype="float32", remat="dots", activation="quick_gelu"):
    sizes = {"width": 128, "head_dim": 64, "mlp_dim": 256, "layers": 3, "taps": (1, 3)}
    return [
        Tower(**sizes, activation=activation, remat=remat, dtype=jnp.dtype(dtype), fused=fused)
        for fused in (False, True)
    ]


def run(tower, params, x, weights):
    """The taps, and the gradients of their weighted sum."""

    def loss(params, x):
        taps = tower.apply({"params": params}, x)
        return (taps.astype(jnp.float32) * weights).sum(), taps

    (_, taps), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return taps, grads


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_the_fused_tower_equals_the_plain_one(remat):
    plain, fused_tower = towers(remat=remat, activation="gelu" if remat == "full" else "quick_gelu")
    x, weights = jnp.float32(normal(0, 6, 10, 128)), normal(1, 2, 6, 10, 128)
    params = random_params(plain, x)
    expected, expected_grads = run(plain, params, x, weights)
    taps, grads = run(fused_tower, params, x, weights)
    np.testing.assert_allclose(taps, expected, rtol=1e-4, atol=1e-4)
    without_gradient = jax.jit(fused_tower.apply)({"params": params}, x)
    np.testing.assert_allclose(without_gradient, taps, rtol=1e-5, atol=1e-5)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
    ):
        scale = np.abs(theirs).max()
        assert scale > 0, path
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4, err_msg=str(path))


def test_the_fused_tower_in_bfloat16_is_as_close_to_float32_as_the_plain_one():
    x, weights = jnp.float32(normal(0, 6, 10, 128)), normal(1, 2, 6, 10, 128)
    params = random_params(towers()[0], x)
    exact = run(towers()[0], params, x, weights)
    errors = []
    for tower in towers("bfloat16"):
        ours = run(tower, params, x.astype(jnp.bfloat16), weights)
        errors.append(
            [
                np.linalg.norm(np.float32(a) - np.float32(b)) / np.linalg.norm(np.float32(b))
                for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True)
            ]
        )
    plain, ours = errors
    assert max(plain) < 0.05
    assert all(b < 1.5 * a for a, b in zip(plain, ours, strict=True)), (plain, ours)


def test_one_pass_statistics_of_bfloat16_equal_those_of_two_passes():
    x = jnp.asarray(normal(0, 64, 768) * 3 + 2, jnp.bfloat16)
    x = x.at[:, 5].set(60)  # CLIP has channels that are far greater than the others
    one, two = row_stats(x), row_stats(x.astype(jnp.float32))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-6)
    np.testing.assert_allclose(one.inverse, two.inverse, rtol=1e-6)
