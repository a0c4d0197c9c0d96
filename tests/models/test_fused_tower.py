"""The tower arranged for TPUs against the plain one; its kernels run in Pallas' interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models.tower.row_norm import row_stats
from hvp_jax.models.tower.tower import Tower
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile", "interpreted_kernels")


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
