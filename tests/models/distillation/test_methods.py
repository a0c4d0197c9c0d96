"""The ways to halve tokens, against NumPy; what is switched off has no parameters and no cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models.distillation import methods
from hvp_jax.models.distillation.stage import TokenDistillation
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 16
METHODS = ("dpc_knn", "kmeans", "top_score", "average_pool")


def lloyd(x: np.ndarray) -> np.ndarray:
    """The clusters of tokens [N, D], token by token, with the rule for empty clusters."""
    count = len(x)
    clusters = max((count + 1) // 2, 1)
    centroids = x[[i * count // clusters for i in range(clusters)]]
    for _ in range(methods.ITERATIONS + 1):
        squared = np.square(x[:, None] - centroids).sum(2)  # [N, M]
        squared[squared < 1e-12] = 0
        labels = squared.argmin(axis=1)
        distance = squared[np.arange(count), labels]
        stays = [
            min((i for i in range(count) if labels[i] == m), key=lambda i: distance[i])
            for m in set(labels)
        ]
        movable = sorted(set(range(count)) - set(stays), key=lambda i: (-distance[i], i))
        empty = [m for m in range(clusters) if m not in labels]
        for m, token in zip(empty, movable, strict=False):
            labels[token] = m
        centroids = np.array([x[labels == m].mean(0) for m in range(clusters)])
    return labels


@pytest.mark.parametrize("repeated", [False, True])
def test_kmeans_equals_lloyds_algorithm_and_leaves_no_cluster_empty(repeated):
    x, count = normal(0, 6, 13, WIDTH), np.array([13, 12, 7, 2, 1, 9])
    if repeated:  # identical frames: several centroids start at the same place
        x[:, 3:9] = x[:, :1]
        x[5] = 0.25
    with jax.enable_x64(True):
        labels = jax.jit(methods.kmeans_cluster)(x, count)
        longer = np.concatenate([x, 50 * normal(1, 6, 4, WIDTH)], axis=1)
        padded = jax.jit(methods.kmeans_cluster)(longer, count)
    for b, n in enumerate(count):
        clusters = max((n + 1) // 2, 1)
        assert sorted(set(np.asarray(labels[b, :n]))) == list(range(clusters))
        np.testing.assert_array_equal(padded[b, :n], labels[b, :n])
        np.testing.assert_array_equal(labels[b, :n], lloyd(x[b, :n] - x[b, :n].mean(0)))


def test_kmeans_by_groups_of_samples_is_the_same():
    x, count = np.float32(normal(0, 6, 13, WIDTH)), np.array([13, 12, 7, 2, 1, 9])
    labels = [jax.jit(methods.kmeans_cluster, static_argnames="group")(x, count, group=group)
              for group in (1, 400, None)]  # fmt: skip
    np.testing.assert_array_equal(labels[0], labels[2])
    np.testing.assert_array_equal(labels[1], labels[2])


def test_top_score_keeps_the_best_half_in_its_order():
    x, score, count = normal(0, 4, 9, WIDTH), normal(1, 4, 9), np.array([9, 6, 2, 1])
    kept = jax.jit(methods.keep_best)(np.float32(x), np.float32(score), count)
    assert kept.shape == (4, 5, WIDTH)
    for b, n in enumerate(count):
        best = np.sort(np.argsort(-score[b, :n])[: (n + 1) // 2])
        np.testing.assert_array_equal(kept[b, : len(best)], np.float32(x[b, best]))
        assert (kept[b, len(best) :] == 0).all()


def test_average_pool_is_the_mean_of_neighbours():
    x, count = np.float32(normal(0, 4, 9, WIDTH)), np.array([9, 6, 2, 1])
    pooled = jax.jit(methods.average_neighbours)(x, count)
    assert pooled.shape == (4, 5, WIDTH)
    for b, n in enumerate(count):
        expected = [x[b, i : min(i + 2, n)].mean(0) for i in range(0, n, 2)]
        np.testing.assert_allclose(pooled[b, : len(expected)], expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_same_budget_and_does_not_see_the_padding(method):
    module = TokenDistillation(stages=2, method=method)
    x, count = np.float32(normal(0, 3, 11, WIDTH)), jnp.array([11, 6, 1])
    params = jax.tree.map(jnp.asarray, random_params(module, x, count))
    run = jax.jit(lambda x: module.apply({"params": params}, x, count))
    tokens, kept = run(x)
    assert tokens.shape == (3, 3, WIDTH) and kept.tolist() == [3, 2, 1]
    for row, n in zip(x, (11, 6, 1), strict=True):
        row[n:] = 7
    longer, _ = run(np.concatenate([x, np.float32(50 * normal(1, 3, 4, WIDTH))], axis=1))
    for b, n in enumerate(kept):
        np.testing.assert_allclose(longer[b, :n], tokens[b, :n], atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_weight_of_a_method_gets_a_gradient(method):
    module = TokenDistillation(stages=2, method=method)
    x, count = jnp.float32(normal(0, 2, 12, WIDTH)), jnp.array([12, 9])
    params = jax.tree.map(jnp.asarray, random_params(module, x, count))

    def weighted_sum(params):
        y, _ = module.apply({"params": params}, x, count)
        return (y[:, :2] * normal(1, 2, 2, WIDTH)).sum()

    gradient = jax.jit(jax.grad(weighted_sum))(params)
    for stage in gradient.values():
        del stage["score"]["bias"]  # it acts through the epsilon of a merge alone
        stage["key_value"]["bias"] = stage["key_value"]["bias"][WIDTH:]  # the keys' bias cancels
    assert min(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 1e-6


def test_only_dpc_knn_draws_noise():
    x, count = jnp.float32(normal(0, 2, 12, WIDTH)), jnp.array([12, 9])
    for method in METHODS:
        module = TokenDistillation(stages=1, method=method)
        params = jax.tree.map(jnp.asarray, random_params(module, x, count))

        def run(keys, module=module, params=params):
            return module.apply({"params": params}, x, count, keys)

        traced = str(jax.make_jaxpr(run)(jax.random.split(jax.random.key(0), 2)))
        assert ("random_bits" in traced) == (method == "dpc_knn")


def flops_and_params(**fields) -> tuple[float, set[str]]:
    module = TokenDistillation(stages=1, **fields)
    x, count = np.float32(normal(0, 2, 64, WIDTH)), jnp.array([64, 50])
    params = random_params(module, x, count)
    lowered = jax.jit(lambda p, x: module.apply({"params": p}, x, count)[0]).lower(params, x)
    return lowered.cost_analysis()["flops"], set(params["stage_0"])


def test_layers_that_are_switched_off_have_no_parameters_and_no_cost():
    layers = {"attention_norm", "query", "key_value", "attention_out"}
    cost, names = flops_and_params()
    assert names == layers | {"conv", "norm", "score"}
    without_attention, left = flops_and_params(attention=False)
    assert left == {"conv", "norm", "score"} and without_attention < cost - 2 * 4 * 64 * WIDTH**2
    without_conv, left = flops_and_params(conv=False)
    assert left == names - {"conv"} and without_conv < cost
    pooled, left = flops_and_params(method="average_pool")
    assert left == names and pooled < cost - 2 * 2 * 64**2 * WIDTH  # no distances
    pooled, left = flops_and_params(method="average_pool", attention=False, conv=False)
    assert left == {"norm"}  # nothing is left that would need a score
    best, _ = flops_and_params(method="top_score")
    assert best < cost - 2 * 2 * 64**2 * WIDTH


def test_without_attention_and_convolution_a_stage_is_norm_and_merge():
    module = TokenDistillation(stages=1, method="average_pool", attention=False, conv=False)
    x, count = np.float32(normal(0, 2, 8, WIDTH)), jnp.array([8, 5])
    params = random_params(module, x, count)
    tokens, _ = jax.jit(lambda x: module.apply({"params": params}, x, count))(x)
    norm = params["stage_0"]["norm"]
    unit = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-5)
    unit = unit * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(tokens[0], unit[0].reshape(4, 2, WIDTH).mean(1), atol=1e-5)
    np.testing.assert_allclose(tokens[1, 2], unit[1, 4], atol=1e-5)
