"""Merging and the hierarchy: the formula, padding, noise and rematerialisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models.distillation import clustering
from hvp_jax.models.distillation.stage import TokenDistillation, grouped_attention
from hvp_jax.models.layers import attention
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 16
merge = jax.jit(clustering.merge_clusters)


def numpy_merge(x, score, labels) -> np.ndarray:
    """[N, D], [N], [N] -> [M, D], each cluster a weighted mean."""
    merged = []
    for m in range(max(labels) + 1):
        weights = np.where(np.array(labels) == m, np.exp(score), 0)
        merged.append(weights @ x / (weights.sum() + 1e-6))
    return np.array(merged)


@pytest.mark.parametrize("scale", [1, 10, 200])
def test_merge_equals_the_formula(scale):
    labels = np.array([[0, 1, 2, 1, 0, 2, 1]])
    score = np.array([[1, 0.3, -1, 0.9, -0.2, -0.8, -1]]) * scale
    x = normal(0, 1, 7, WIDTH)
    formula = numpy_merge(x[0], score[0], labels[0])
    with jax.enable_x64(True):
        exact = merge(x, score, labels, np.array([7]))
        np.testing.assert_allclose(exact[0, :3], formula, rtol=1e-12, atol=1e-15)
        shifted = merge(x, score - 2.5, labels, np.array([7]), bias=2.5)
        np.testing.assert_allclose(shifted[0, :3], formula, rtol=1e-12, atol=1e-15)
    single = merge(np.float32(x), np.float32(score), labels, np.array([7]))
    np.testing.assert_allclose(single[0, :3], formula, rtol=2e-5, atol=1e-6)
    assert (single[0, 3] == 0).all()  # no such cluster


@pytest.mark.parametrize("level", [-200, -90, -14, 90, 200])
def test_merge_and_its_gradient_stay_finite(level):
    labels = jnp.array([[0, 1, 0, 1]])
    x, probe = (np.float32(normal(i, 1, n, WIDTH)) for i, n in ((0, 4), (1, 2)))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def weighted_sum(x, score, bias):
        merged = clustering.merge_clusters(x, score, labels, jnp.array([4]), bias=bias)
        return (merged * probe).sum()

    for score in (level, [[level, -level, 0, level]], [[level, 0, -level, 1]]):
        score = np.broadcast_to(np.float32(score), (1, 4))
        leaves = jax.tree.leaves(weighted_sum(x, score, np.float32(0)))
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)


def test_merge_has_the_gradient_of_the_formula_also_for_the_bias():
    """The bias acts only through the 1e-6, so its float32 gradient sums no rounding errors."""
    labels, count = np.array([[0, 1, 2, 1, 0, 2, 1]]), jnp.array([7])
    x, score, probe = normal(0, 1, 7, WIDTH), normal(1, 1, 7), normal(2, 1, 4, WIDTH)

    def formula(x, score, bias):
        member = labels[0][:, None] == np.arange(4)
        weight = jnp.where(member, jnp.exp(score + bias).T, 0)  # [N, M]
        return ((weight / (weight.sum(0) + 1e-6)).T @ x[0] * probe[0]).sum()

    def ours(x, score, bias):
        merged = clustering.merge_clusters(x, score, jnp.asarray(labels), count, bias=bias)
        return (merged * probe).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(formula, argnums=(0, 1, 2)))(x, score, 0.3)
        expected = jax.tree.map(np.asarray, expected)
    single = (np.float32(x), np.float32(score), np.float32(0.3))
    gradients = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*single)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


@pytest.fixture(scope="module")
def hierarchy():
    """A hierarchy of three stages: (x, count, key) -> tokens, their count, intermediates."""
    module = TokenDistillation(stages=3)
    x, count = np.zeros((1, 4, WIDTH), np.float32), np.ones(1, np.int32)
    params = jax.tree.map(jnp.asarray, random_params(module, x, count))

    @jax.jit
    def run(x, count, key=None):
        out, variables = module.apply(
            {"params": params}, x, jnp.asarray(count), key, mutable=["intermediates"]
        )
        return *out, variables["intermediates"]

    return run


@pytest.fixture(scope="module")
def hierarchy_once(hierarchy):
    x, count = normal(0, 4, 11, WIDTH).astype(np.float32), np.array([11, 7, 2, 1])
    return x, count, hierarchy(x, count)


def test_each_stage_halves_the_tokens_and_leaves_at_least_one(hierarchy_once):
    _, _, (tokens, count, intermediates) = hierarchy_once
    assert tokens.shape == (4, 2, WIDTH)  # 11, 6, 3, 2
    assert count.tolist() == [2, 1, 1, 1]
    assert intermediates["stage_1"]["clusters"][0].shape == (4, 6)
    assert intermediates["stage_2"]["merged"][0].shape == (4, 2, WIDTH)


def test_padding_does_not_change_valid_tokens(hierarchy, hierarchy_once):
    x, count, (tokens, merged_count, intermediates) = hierarchy_once
    longer = np.concatenate([x, 50 * normal(9, 4, 5, WIDTH).astype(np.float32)], axis=1)
    for row, n in zip(longer, count, strict=True):
        row[n:] = np.float32(50 * normal(n, len(row) - n, WIDTH))
    longer_tokens, longer_count, longer_intermediates = hierarchy(longer, count)
    assert longer_count.tolist() == merged_count.tolist()
    for b, n in enumerate(count):
        m = merged_count[b]
        np.testing.assert_allclose(longer_tokens[b, :m], tokens[b, :m], atol=1e-5)
        for stage in ("stage_0", "stage_1", "stage_2"):
            for name, length in (("tokens", n), ("clusters", n), ("merged", (n + 1) // 2)):
                ours = longer_intermediates[stage][name][0][b, :length]
                expected = intermediates[stage][name][0][b, :length]
                np.testing.assert_allclose(ours, expected, atol=0 if name == "clusters" else 1e-5)
            n = (n + 1) // 2


def test_the_samples_of_a_batch_are_independent(hierarchy, hierarchy_once):
    x, count, (tokens, merged_count, _) = hierarchy_once
    order = np.array([2, 0, 3, 1])
    shuffled, shuffled_count, _ = hierarchy(x[order], count[order])
    assert shuffled_count.tolist() == merged_count[order].tolist()
    np.testing.assert_allclose(shuffled, tokens[order], atol=1e-6)


def test_noise_depends_only_on_the_key():
    """For equidistant tokens, the noise alone determines the clusters."""
    module, count = TokenDistillation(stages=1), jnp.full(3, 12)
    x = np.tile(np.eye(12, WIDTH, dtype=np.float32), (3, 1, 1))
    params = random_params(module, x, count)
    stage = params["stage_0"]
    stage["conv"]["kernel"][:] = 0
    stage["norm"] = {"scale": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def clusters(seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        _, variables = module.apply(
            {"params": params}, jnp.asarray(x), count, keys, mutable=["intermediates"]
        )
        return variables["intermediates"]["stage_0"]["clusters"][0]

    first = clusters(jnp.array([1, 2, 3]))
    np.testing.assert_array_equal(first, clusters(jnp.array([1, 2, 3])))
    assert len({tuple(row) for row in first.tolist()}) == 3
    # A sample's noise depends on its own key, not on its position in the batch.
    np.testing.assert_array_equal(clusters(jnp.array([3, 1, 4]))[:2], first[jnp.array([2, 0])])


@pytest.mark.parametrize("pairs", [1, 3 * 11 * 6, 1 << 20])
def test_attention_by_groups_equals_the_whole_and_has_its_gradient(monkeypatch, pairs):
    monkeypatch.setattr(clustering, "GROUP", pairs)
    inputs = [normal(seed, 3, n, 4, 5) for seed, n in enumerate((6, 11, 11))]
    bias = np.where(np.arange(11) < np.array([[11], [7], [1]]), normal(3, 3, 11), -np.inf)
    probe = normal(4, 3, 6, 4, 5)

    def whole(query, key, value, bias):
        return (attention(query, key, value, bias[:, None, None]) * probe).sum()

    def grouped(query, key, value, bias):
        return (grouped_attention(query, key, value, bias) * probe).sum()

    with jax.enable_x64(True):
        ours, expected = (
            jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(*inputs, bias)
            for f in (grouped, whole)
        )
        for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_remat_changes_no_gradient_and_saves_fewer_residuals():
    x, count = np.float32(normal(0, 2, 64, WIDTH)), jnp.array([64, 50])
    gradients, pair_residuals, sizes = [], [], []
    params = random_params(TokenDistillation(stages=2), x, count)
    for remat in (False, True):
        module = TokenDistillation(stages=2, remat=remat)

        def weighted_sum(params, x, module=module):
            y, _ = module.apply({"params": params}, x, count)
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

        def residuals(params, x, weighted_sum=weighted_sum):
            return jax.vjp(weighted_sum, params, x)[1]

        gradients.append(jax.jit(jax.grad(weighted_sum, argnums=(0, 1)))(params, x))
        shapes = [r.shape for r in jax.tree.leaves(jax.eval_shape(residuals, params, x))]
        # Arrays over all pairs of a token and a cluster.
        pair_residuals.append([s for s in shapes if 64 in s and 32 in s])
        sizes.append(sum(math.prod(s) for s in shapes))
    assert pair_residuals == [[], []]
    assert sizes[1] < sizes[0] / 2
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
