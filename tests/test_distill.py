"""Clustering, merging and the hierarchy, against loops written from the description."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import normal, quick_compile, random_params  # noqa: F401

from hvp_jax import distill

WIDTH = 16
cluster = jax.jit(distill.cluster)
merge = jax.jit(distill.merge)


def numpy_cluster(x: np.ndarray) -> tuple[list[int], float]:
    """DPC-KNN of one sample [N, D] -> the cluster of each token, and the margin.

    The margin is how near the nearest of all comparisons came to going the other way.
    """
    x = x.astype(np.float64)
    tokens, width = x.shape
    distance = np.zeros((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            distance[i, j] = math.sqrt(sum((x[i] - x[j]) ** 2)) / math.sqrt(width)
    density = [math.exp(-np.mean(sorted(row**2)[:3])) for row in distance]
    score = []
    for i in range(tokens):
        denser = [distance[i, j] for j in range(tokens) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distance.max()))
    order = sorted(range(tokens), key=lambda i: -score[i])
    centres = order[: max(math.ceil(tokens / 2), 1)]
    labels, gaps = [], [1.0]
    for i in range(tokens):
        to_centre = sorted((distance[i, c], n) for n, c in enumerate(centres))
        labels.append(centres.index(i) if i in centres else to_centre[0][1])
        if i not in centres and len(centres) > 1:
            gaps.append(to_centre[1][0] - to_centre[0][0])
    if tokens > 2:  # two tokens are alike, whatever they are
        gaps += [float(np.diff(sorted(density)).min()), float(np.diff(sorted(score)).min())]
    return labels, min(gaps)


def numpy_merge(x, score, labels) -> np.ndarray:
    """[N, D], [N], [N] -> [M, D], each cluster a weighted mean."""
    merged = []
    for m in range(max(labels) + 1):
        weights = np.where(np.array(labels) == m, np.exp(score), 0)
        merged.append(weights @ x / (weights.sum() + 1e-6))
    return np.array(merged)


def tokens_with_a_margin(seed: int, tokens: int) -> np.ndarray:
    """[N, D] of which no comparison is closer than what float32 may err."""
    while True:
        x = normal(seed, tokens, WIDTH).astype(np.float32)
        if numpy_cluster(x)[1] > 1e-5:
            return x
        seed += 1000


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 24])
def test_cluster_equals_the_loops(tokens):
    samples = [tokens_with_a_margin(seed, tokens) for seed in range(6)]
    labels, clusters = cluster(np.stack(samples), np.full(6, tokens))
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [numpy_cluster(x)[0] for x in samples]
    assert clusters.tolist() == [math.ceil(tokens / 2)] * 6


def test_cluster_of_samples_of_many_lengths_equals_the_loops():
    counts = [1, 2, 3, 4, 5, 9, 12, 13]
    samples = [tokens_with_a_margin(seed, n) for seed, n in enumerate(counts)]
    x = np.float32(normal(0, len(counts), 13, WIDTH) * np.array([[[0.1]], [[100.0]]] * 4))
    for row, sample in zip(x, samples, strict=True):
        row[: len(sample)] = sample
    labels, clusters = cluster(x, np.array(counts))
    assert [row[:n].tolist() for row, n in zip(labels, counts, strict=True)] == [
        numpy_cluster(sample)[0] for sample in samples
    ]
    assert clusters.tolist() == [1, 1, 2, 2, 3, 5, 6, 7]


def test_clusters_are_numbered_by_falling_score():
    """Three tight groups; the score of a group's head falls with its distance to a denser one."""
    spread = np.array([0.0, 0.1, 0.25])
    line = np.concatenate([spread, 3 + 1.3 * spread, 9 + 1.7 * spread])
    x = np.zeros((1, 9, WIDTH), np.float32)
    x[0, :, 0] = line
    labels, _ = cluster(x, np.array([9]))
    assert labels[0].tolist() == numpy_cluster(x[0])[0]
    # The densest has the greatest distance (9), then come the far group (6) and the near one (3).
    heads = [labels[0, 3 * group : 3 * group + 3].min() for group in range(3)]
    assert heads == [0, 2, 1]


@pytest.mark.parametrize(
    "x",
    [
        np.ones((7, WIDTH)),
        np.repeat(normal(0, 3, WIDTH), 3, axis=0),
        np.repeat(normal(0, 2, WIDTH), [1, 6], axis=0),
        np.zeros((2, WIDTH)),
        np.eye(8, WIDTH),  # all at the same distance
        np.float32(1e4) + np.zeros((5, WIDTH)),
    ],
    ids=["alike", "triplets", "one apart", "zeros", "equidistant", "far off"],
)
def test_ties_leave_no_cluster_without_its_centre(x):
    labels, clusters = cluster(x[None].astype(np.float32), np.array([len(x)]))
    assert set(labels[0].tolist()) == set(range(int(clusters[0])))
    merged = merge(x[None].astype(np.float32), np.zeros((1, len(x)), np.float32), labels, clusters)
    assert jnp.isfinite(merged).all()


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_of_twins_one_is_a_centre(copies):
    """The frames of a still: with centres to spare, no token shares one with another."""
    distinct = np.float32(normal(copies, 2, 8, 64))
    x = np.concatenate([distinct] * copies, axis=1)
    x = np.float32(x * (1 + 1e-6 * normal(9, *x.shape[:2], 1)))  # what rounding does to copies
    labels, clusters = cluster(x, np.full(2, 8 * copies))
    for row in labels.reshape(2, copies, 8):
        # Each token with all its copies, and no other; spare centres are copies too.
        members = [set(row[:, token].tolist()) for token in range(8)]
        assert sum(len(m) for m in members) == len(set().union(*members)) == clusters[0]


def test_the_noise_decides_between_equals():
    """All at one distance: the density is the noise's, and so is the order of the centres."""
    noise = np.array([[3, 0, 5, 1, 4, 2]], np.float32) / 5
    labels, _ = cluster(np.eye(6, WIDTH, dtype=np.float32)[None], np.array([6]), noise)
    assert labels[0, np.array([2, 4, 0])].tolist() == [0, 1, 2]
    assert labels[0].tolist() == [2, 0, 0, 0, 1, 0]  # the rest joins the first


def test_noise_overrules_no_margin():
    x = np.stack([tokens_with_a_margin(seed, 12) for seed in range(4)])
    quiet, _ = cluster(x, np.full(4, 12))
    for seed in range(3):
        noise = np.random.default_rng(seed).random((4, 12), np.float32)
        np.testing.assert_array_equal(cluster(x, np.full(4, 12), noise)[0], quiet)


def test_squared_distances_are_never_negative_and_0_between_twins():
    squared_distances = jax.jit(distill.squared_distances)
    x = np.float32(300 + 1e-4 * normal(0, 2, 40, WIDTH))  # the products cancel to nothing
    assert (squared_distances(x) == 0).all()
    x = np.tile(np.float32(normal(1, 1, 200, 512)), (1, 3, 1))
    squared = squared_distances(x)[0].reshape(3, 200, 3, 200)
    twins = np.eye(200, dtype=bool)
    assert (squared.transpose(0, 2, 1, 3)[:, :, twins] == 0).all()
    assert squared.transpose(0, 2, 1, 3)[:, :, ~twins].min() > 500
    x = normal(1, 2, 9, WIDTH).astype(np.float32)
    long = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(x), long, atol=1e-4)


def test_bfloat16_tokens_are_clustered_in_float32():
    x = jnp.asarray(np.stack([tokens_with_a_margin(s, 24) for s in range(4)]), jnp.bfloat16)
    labels, _ = cluster(x, np.full(4, 24))
    np.testing.assert_array_equal(labels, cluster(x.astype(jnp.float32), np.full(4, 24))[0])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_mean_of_smallest_counts_duplicates(k):
    values = np.random.default_rng(0).integers(0, 4, (3, 6, 40)).astype(np.float32)
    values[0, 2:, :10] = np.inf  # two finite ones
    values[1, :, :5] = np.inf  # none
    ours = jax.jit(distill.mean_of_smallest, static_argnums=1)(values, k)
    for b in range(3):
        for m in range(40):
            smallest = np.sort(values[b, :, m])[:k]
            smallest = smallest[np.isfinite(smallest)]
            assert ours[b, m] == pytest.approx(smallest.mean() if len(smallest) else 0, abs=1e-6)


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
        return (distill.merge(x, score, labels, jnp.array([4]), bias) * probe).sum()

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
        return (distill.merge(x, score, labels, jnp.asarray(count), bias) * probe).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(formula, argnums=(0, 1, 2)))(x, score, 0.3)
        expected = jax.tree.map(np.asarray, expected)
    single = (np.float32(x), np.float32(score), np.float32(0.3))
    found = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*single)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


def test_no_gradient_flows_through_the_clustering():
    x, count = normal(0, 2, 8, WIDTH).astype(np.float32), np.array([8, 6])
    score, probe = normal(1, 2, 8).astype(np.float32), normal(2, 2, 4, WIDTH).astype(np.float32)
    fixed, _ = cluster(x, count)

    def through(x):
        return (distill.merge(x, score, distill.cluster(x, count)[0], count) * probe).sum()

    def given(x):
        return (distill.merge(x, score, fixed, count) * probe).sum()

    found = jax.jit(jax.grad(through))(x)
    np.testing.assert_allclose(found, jax.jit(jax.grad(given))(x), atol=1e-6)
    assert jnp.isfinite(found).all()
    # Not even the distances, which are real numbers and have a gradient of their own.
    jaxpr = str(
        jax.make_jaxpr(lambda x, t: jax.jvp(lambda x: distill.cluster(x, count), (x,), (t,)))(x, x)
    )
    plain = str(jax.make_jaxpr(lambda x: distill.cluster(x, count))(x))
    assert jaxpr.count("dot_general") == plain.count("dot_general")


@pytest.fixture(scope="module")
def hierarchy():
    """The hierarchy of three stages: (x, count, key) -> tokens, their count, intermediates."""
    module = distill.Distill(3)
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
    module, count = distill.Distill(1), np.full(3, 12)
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
