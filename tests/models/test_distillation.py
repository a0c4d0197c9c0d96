"""Merging and the hierarchy, against the formula and what the description promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import distillation
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 16
merge = jax.jit(distillation.merge_clusters)


def numpy_merge(x, score, labels) -> np.ndarray:
    """[N, D], [N], [N] -> [M, D], each cluster a weighted mean."""
    merged = []
    for m in range(max(labels) + 1):
        weights = np.where(np.array(labels) == m, np.exp(score), 0)
        merged.append(weights @ x / (weights.sum() + 1e-6))
    return np.array(merged)


@pytest.mark.parametrize("scale", [1, 10, 200])
def test_merge_equals_its_formula(scale):
    labels = np.array([[0, 1, 2, 1, 0, 2, 1]])
    score = np.array([[1, 0.3, -1, 0.9, -0.2, -0.8, -1]]) * scale
    x = normal(0, 1, 7, WIDTH)
    formula = numpy_merge(x[0], score[0], labels[0])
    with jax.enable_x64(True):
        exact = merge(x, score, labels, np.array([7]))
        np.testing.assert_allclose(exact[0, :3], formula, rtol=1e-12, atol=1e-15)
        shifted = merge(x, score - 2.5, labels, np.array([7]), 2.5)
        np.testing.assert_allclose(shifted[0, :3], formula, rtol=1e-12, atol=1e-15)
    single = merge(np.float32(x), np.float32(score), labels, np.array([7]))
    np.testing.assert_allclose(single[0, :3], formula, rtol=2e-5, atol=1e-6)
    assert (single[0, 3] == 0).all()  # no cluster, no token


@pytest.mark.parametrize("level", [-200, -90, -14, 90, 200])
def test_merge_and_its_gradient_stay_finite(level):
    labels = np.array([[0, 1, 0, 1]])
    x, probe = (np.float32(normal(i, 1, n, WIDTH)) for i, n in ((0, 4), (1, 2)))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def weighed(x, score, bias):
        return (distillation.merge_clusters(x, score, labels, jnp.array([4]), bias) * probe).sum()

    for score in (level, [[level, -level, 0, level]], [[level, 0, -level, 1]]):
        score = np.broadcast_to(np.float32(score), (1, 4))
        leaves = jax.tree.leaves(weighed(x, score, np.float32(0)))
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)


def test_merge_has_the_gradient_of_its_formula_also_for_the_bias():
    """The bias acts through the 1e-6 alone: no place for a sum of rounding errors in float32."""
    labels, count = np.array([[0, 1, 2, 1, 0, 2, 1]]), np.array([7])
    x, score, probe = normal(0, 1, 7, WIDTH), normal(1, 1, 7), normal(2, 1, 4, WIDTH)

    def formula(x, score, bias):
        member = labels[0][:, None] == np.arange(4)
        weight = jnp.where(member, jnp.exp(score + bias).T, 0)  # [N, M]
        return ((weight / (weight.sum(0) + 1e-6)).T @ x[0] * probe[0]).sum()

    def ours(x, score, bias):
        return (
            distillation.merge_clusters(x, score, labels, jnp.asarray(count), bias) * probe
        ).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(formula, argnums=(0, 1, 2)))(x, score, 0.3)
        expected = jax.tree.map(np.asarray, expected)
    single = (np.float32(x), np.float32(score), np.float32(0.3))
    found = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*single)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


@pytest.fixture(scope="module")
def hierarchy():
    """The hierarchy of three stages: (x, count, key) -> tokens, their count, intermediates."""
    module = distillation.TokenDistillation(3)
    x, count = np.zeros((1, 4, WIDTH), np.float32), np.ones(1, np.int32)
    params = random_params(module, x, count)

    @jax.jit
    def run(x, count, key=None):
        out, kept = module.apply(
            {"params": params}, x, jnp.asarray(count), key, mutable=["intermediates"]
        )
        return *out, kept["intermediates"]

    return run


@pytest.fixture(scope="module")
def hierarchy_once(hierarchy):
    x, count = normal(0, 4, 11, WIDTH).astype(np.float32), np.array([11, 7, 2, 1])
    return x, count, hierarchy(x, count)


def test_a_stage_halves_and_no_stage_ends_without_a_token(hierarchy_once):
    _, _, (tokens, count, kept) = hierarchy_once
    assert tokens.shape == (4, 2, WIDTH)  # 11, 6, 3, 2
    assert count.tolist() == [2, 1, 1, 1]
    assert kept["stage_1"]["clusters"][0].shape == (4, 6)
    assert kept["stage_2"]["merged"][0].shape == (4, 2, WIDTH)


def test_padding_changes_nothing(hierarchy, hierarchy_once):
    x, count, (tokens, merged_count, kept) = hierarchy_once
    longer = np.concatenate([x, 50 * normal(9, 4, 5, WIDTH).astype(np.float32)], axis=1)
    for row, n in zip(longer, count, strict=True):
        row[n:] = np.float32(50 * normal(n, len(row) - n, WIDTH))
    longer_tokens, longer_count, longer_kept = hierarchy(longer, count)
    assert longer_count.tolist() == merged_count.tolist()
    for b, n in enumerate(count):
        m = merged_count[b]
        np.testing.assert_allclose(longer_tokens[b, :m], tokens[b, :m], atol=1e-5)
        for stage in ("stage_0", "stage_1", "stage_2"):
            for name, length in (("tokens", n), ("clusters", n), ("merged", (n + 1) // 2)):
                a, b_ = (run[stage][name][0][b, :length] for run in (longer_kept, kept))
                np.testing.assert_allclose(a, b_, atol=0 if name == "clusters" else 1e-5)
            n = (n + 1) // 2


def test_the_samples_of_a_batch_do_not_meet(hierarchy, hierarchy_once):
    x, count, (tokens, merged_count, _) = hierarchy_once
    order = np.array([2, 0, 3, 1])
    shuffled, shuffled_count, _ = hierarchy(x[order], count[order])
    assert shuffled_count.tolist() == merged_count[order].tolist()
    np.testing.assert_allclose(shuffled, tokens[order], atol=1e-6)


def test_noise_comes_from_the_key_alone():
    """Tokens all at one distance: only the noise tells them apart."""
    module, count = distillation.TokenDistillation(1), np.full(3, 12)
    x = np.tile(np.eye(12, WIDTH, dtype=np.float32), (3, 1, 1))
    params = random_params(module, x, count)
    stage = params["stage_0"]
    stage["conv"]["kernel"][:] = 0
    stage["norm"] = {"scale": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}

    @jax.jit
    def clusters(seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        kept = module.apply(
            {"params": params}, x, jnp.asarray(count), keys, mutable=["intermediates"]
        )
        return kept[1]["intermediates"]["stage_0"]["clusters"][0]

    first = clusters(jnp.array([1, 2, 3]))
    np.testing.assert_array_equal(first, clusters(jnp.array([1, 2, 3])))
    assert len({tuple(row) for row in first.tolist()}) == 3
    # What a sample gets hangs on its own key, and on no place in the batch.
    np.testing.assert_array_equal(clusters(jnp.array([3, 1, 4]))[:2], first[jnp.array([2, 0])])


def test_remat_changes_no_value_and_no_gradient_and_keeps_less():
    x, count, found, kept = np.float32(normal(0, 2, 64, WIDTH)), np.array([64, 50]), [], []
    params = random_params(distillation.TokenDistillation(2), x, count)
    for remat in (False, True):
        module = distillation.TokenDistillation(2, remat=remat)

        def weighed(params, x, module=module):
            y, _ = module.apply({"params": params}, x, count)
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

        def residuals(params, x, weighed=weighed):
            return jax.vjp(weighed, params, x)[1]

        found.append(jax.jit(jax.grad(weighed, argnums=(0, 1)))(params, x))
        shapes = [r.shape for r in jax.tree.leaves(jax.eval_shape(residuals, params, x))]
        kept.append([s for s in shapes if 64 in s and 32 in s])  # pairs of a token and a cluster
    assert kept[0] and not kept[1]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
