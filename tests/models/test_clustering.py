"""Clustering of tokens, against loops written from the description."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import distillation
from tests.helpers.small import normal

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 16
cluster = jax.jit(distillation.dpc_knn_cluster)
merge = jax.jit(distillation.merge_clusters)


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
    squared_distances = jax.jit(distillation.squared_distances)
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
    ours = jax.jit(distillation.mean_of_smallest, static_argnums=1)(values, k)
    for b in range(3):
        for m in range(40):
            smallest = np.sort(values[b, :, m])[:k]
            smallest = smallest[np.isfinite(smallest)]
            assert ours[b, m] == pytest.approx(smallest.mean() if len(smallest) else 0, abs=1e-6)


def test_no_gradient_flows_through_the_clustering():
    x, count = normal(0, 2, 8, WIDTH).astype(np.float32), np.array([8, 6])
    score, probe = normal(1, 2, 8).astype(np.float32), normal(2, 2, 4, WIDTH).astype(np.float32)
    fixed, _ = cluster(x, count)

    def through(x):
        return (
            distillation.merge_clusters(x, score, distillation.dpc_knn_cluster(x, count)[0], count)
            * probe
        ).sum()

    def given(x):
        return (distillation.merge_clusters(x, score, fixed, count) * probe).sum()

    found = jax.jit(jax.grad(through))(x)
    np.testing.assert_allclose(found, jax.jit(jax.grad(given))(x), atol=1e-6)
    assert jnp.isfinite(found).all()
    # Not even the distances, which are real numbers and have a gradient of their own.
    jaxpr = str(
        jax.make_jaxpr(
            lambda x, t: jax.jvp(lambda x: distillation.dpc_knn_cluster(x, count), (x,), (t,))
        )(x, x)
    )
    plain = str(jax.make_jaxpr(lambda x: distillation.dpc_knn_cluster(x, count))(x))
    assert jaxpr.count("dot_general") == plain.count("dot_general")
