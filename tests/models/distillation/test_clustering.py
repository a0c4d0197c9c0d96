"""Clustering of tokens, against a direct implementation with loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models.distillation import clustering
from tests.helpers.small import normal

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 16
cluster = jax.jit(clustering.dpc_knn_cluster)
merge = jax.jit(clustering.merge_clusters)


def numpy_cluster(x: np.ndarray) -> tuple[list[int], float]:
    """DPC-KNN of one sample [N, D] -> the cluster of each token, and the margin.

    The margin is the smallest difference among all comparisons that decide the result.
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
    if tokens > 2:  # two tokens always have equal density and score
        gaps += [float(np.diff(sorted(density)).min()), float(np.diff(sorted(score)).min())]
    return labels, min(gaps)


def tokens_with_a_margin(seed: int, tokens: int) -> np.ndarray:
    """Tokens [N, D] whose margin exceeds the rounding error of float32."""
    while True:
        x = normal(seed, tokens, WIDTH).astype(np.float32)
        if numpy_cluster(x)[1] > 1e-5:
            return x
        seed += 1000


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 24])
def test_clusters_equal_the_reference_loops(tokens):
    samples = [tokens_with_a_margin(seed, tokens) for seed in range(6)]
    labels, clusters = cluster(np.stack(samples), np.full(6, tokens))
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [numpy_cluster(x)[0] for x in samples]
    assert clusters.tolist() == [math.ceil(tokens / 2)] * 6


def test_clusters_of_samples_of_different_lengths_equal_the_reference_loops():
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


@pytest.mark.parametrize("padded", [0, 5])
def test_clusters_of_similar_tokens_are_exact_in_float32(padded):
    """Tokens of similar frames differ by far less than their length, which must not hide it."""
    common, samples = 4 * normal(99, WIDTH), []
    for seed in range(200):
        x = np.float32(common + 0.03 * normal(seed, 8, WIDTH))
        if numpy_cluster(x)[1] > 2e-6:
            samples.append(x)
    assert len(samples) > 10
    x = np.pad(np.stack(samples), ((0, 0), (0, padded), (0, 0)))
    labels, _ = cluster(x, np.full(len(x), 8))
    assert labels[:, :8].tolist() == [numpy_cluster(sample)[0] for sample in samples]


def test_clusters_are_ordered_by_decreasing_score():
    """Three tight groups: the score of a centre depends on its distance to a denser token."""
    spread = np.array([0.0, 0.1, 0.25])
    line = np.concatenate([spread, 3 + 1.3 * spread, 9 + 1.7 * spread])
    x = np.zeros((1, 9, WIDTH), np.float32)
    x[0, :, 0] = line
    labels, _ = cluster(x, np.array([9]))
    assert labels[0].tolist() == numpy_cluster(x[0])[0]
    # The distances are 9 for the densest group, 6 for the far group and 3 for the near one.
    first_labels = [labels[0, 3 * group : 3 * group + 3].min() for group in range(3)]
    assert first_labels == [0, 2, 1]


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
    ids=["equal", "triplets", "one different", "zeros", "equidistant", "far from 0"],
)
def test_with_ties_every_cluster_has_a_token(x):
    labels, clusters = cluster(x[None].astype(np.float32), np.array([len(x)]))
    assert set(labels[0].tolist()) == set(range(int(clusters[0])))
    merged = merge(x[None].astype(np.float32), np.zeros((1, len(x)), np.float32), labels, clusters)
    assert jnp.isfinite(merged).all()


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies_of_a_token_form_their_own_clusters(copies):
    """Frames of a still image: with enough centres, no cluster has two different tokens."""
    distinct = np.float32(normal(copies, 2, 8, 64))
    x = np.concatenate([distinct] * copies, axis=1)
    x = np.float32(x * (1 + 1e-6 * normal(9, *x.shape[:2], 1)))  # rounding error
    labels, clusters = cluster(x, np.full(2, 8 * copies))
    for row in labels.reshape(2, copies, 8):
        # A cluster holds copies of one token only; the remaining centres are copies too.
        members = [set(row[:, token].tolist()) for token in range(8)]
        assert sum(len(m) for m in members) == len(set().union(*members)) == clusters[0]


def test_the_noise_breaks_ties():
    """For equidistant tokens, the noise alone determines the order of the centres."""
    noise = np.array([[3, 0, 5, 1, 4, 2]], np.float32) / 5
    labels, _ = cluster(np.eye(6, WIDTH, dtype=np.float32)[None], np.array([6]), noise)
    assert labels[0, np.array([2, 4, 0])].tolist() == [0, 1, 2]
    assert labels[0].tolist() == [2, 0, 0, 0, 1, 0]  # the rest joins the first cluster


def test_noise_does_not_change_clusters_without_ties():
    x = np.stack([tokens_with_a_margin(seed, 12) for seed in range(4)])
    without_noise, _ = cluster(x, np.full(4, 12))
    for seed in range(3):
        noise = np.random.default_rng(seed).random((4, 12), np.float32)
        np.testing.assert_array_equal(cluster(x, np.full(4, 12), noise)[0], without_noise)


def test_squared_distances_are_never_negative_and_0_between_equal_tokens():
    squared_distances = jax.jit(clustering.squared_distances)
    x = np.float32(300 + 1e-4 * normal(0, 2, 40, WIDTH))  # everything cancels
    assert (squared_distances(x) == 0).all()
    x = np.tile(np.float32(normal(1, 1, 200, 512)), (1, 3, 1))
    squared = squared_distances(x)[0].reshape(3, 200, 3, 200)
    equal = np.eye(200, dtype=bool)
    assert (squared.transpose(0, 2, 1, 3)[:, :, equal] == 0).all()
    assert squared.transpose(0, 2, 1, 3)[:, :, ~equal].min() > 500
    x = normal(1, 2, 9, WIDTH).astype(np.float32)
    direct = ((x[:, :, None] - x[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(x), direct, atol=1e-4)


def mirrored(seed: int, tokens: int) -> np.ndarray:
    """Integer tokens and their negatives, some twice: float32 computes all distances exactly."""
    half = np.random.default_rng(seed).integers(-1, 2, (tokens // 2, WIDTH)).astype(np.float32)
    half[::3] = half[0]
    return np.concatenate([half, -half])


@pytest.mark.parametrize("pairs", [1, 2 * 20 * 20, 1 << 20])
def test_the_size_of_a_group_changes_no_cluster_also_with_ties(monkeypatch, pairs):
    """Groups of one, two and all samples, where many distances and densities are equal."""
    x, count = np.stack([mirrored(seed, 20) for seed in range(6)]), np.full(6, 20)
    # Far more than the rounding error of the densities, which differs between programs.
    noise = 1000 * np.random.default_rng(0).random((6, 20), np.float32)
    expected, with_noise = cluster(x, count)[0], cluster(x, count, noise)[0]
    monkeypatch.setattr(clustering, "GROUP", pairs)
    grouped = jax.jit(lambda *inputs: clustering.dpc_knn_cluster(*inputs)[0])  # compiled anew
    np.testing.assert_array_equal(grouped(x, count), expected)
    np.testing.assert_array_equal(grouped(x, count, noise), with_noise)


def test_the_distances_of_padding_are_infinite():
    x, valid = np.float32(normal(0, 2, 5, WIDTH)), np.arange(5) < np.array([[5], [3]])
    x[1, 3:] = 50
    squared = jax.jit(clustering.squared_distances)(x, valid)
    both = valid[:, :, None] & valid[:, None]
    assert (np.isinf(squared) == ~both).all()
    direct = ((x[0, :, None] - x[0]) ** 2).sum(-1)
    np.testing.assert_allclose(squared[0], direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 1 << 20])
def test_both_sums_of_clusters_have_the_values_and_the_gradient_of_a_loop(monkeypatch, pairs):
    monkeypatch.setattr(clustering, "GROUP", pairs)
    x, probe = np.float32(normal(0, 3, 9, WIDTH)), np.float32(normal(1, 3, 5, WIDTH))
    labels = np.random.default_rng(2).integers(-1, 5, (3, 9))
    expected, gradient = np.zeros_like(probe), np.zeros_like(x)
    for b, n in np.argwhere(labels >= 0):
        expected[b, labels[b, n]] += x[b, n]
        gradient[b, n] = probe[b, labels[b, n]]
    labels, x = jnp.asarray(labels), jnp.asarray(x)
    for form in (clustering.sum_by_product, clustering.sum_by_scatter, clustering.sum_clusters):
        ours = jax.jit(form, static_argnums=2)(x, labels, 5)
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    _, pull = jax.vjp(lambda x: clustering.sum_clusters(x, labels, 5), x)
    np.testing.assert_array_equal(pull(jnp.asarray(probe))[0], gradient)


def test_bfloat16_tokens_are_clustered_in_float32():
    x = jnp.asarray(np.stack([tokens_with_a_margin(s, 24) for s in range(4)]), jnp.bfloat16)
    labels, _ = cluster(x, np.full(4, 24))
    np.testing.assert_array_equal(labels, cluster(x.astype(jnp.float32), np.full(4, 24))[0])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_mean_of_smallest_counts_duplicates(k):
    values = np.random.default_rng(0).integers(0, 4, (3, 6, 40)).astype(np.float32)
    values[0, 2:, :10] = np.inf  # two finite ones
    values[1, :, :5] = np.inf  # none
    ours = jax.jit(clustering.mean_of_smallest, static_argnums=1)(values, k)
    for b in range(3):
        for m in range(40):
            smallest = np.sort(values[b, :, m])[:k]
            smallest = smallest[np.isfinite(smallest)]
            assert ours[b, m] == pytest.approx(smallest.mean() if len(smallest) else 0, abs=1e-6)


def test_no_gradient_flows_through_the_clustering():
    x, count = normal(0, 2, 8, WIDTH).astype(np.float32), jnp.array([8, 6])
    score, probe = jnp.float32(normal(1, 2, 8)), normal(2, 2, 4, WIDTH).astype(np.float32)
    fixed, _ = cluster(x, count)

    def with_clustering(x):
        return (
            clustering.merge_clusters(x, score, clustering.dpc_knn_cluster(x, count)[0], count)
            * probe
        ).sum()

    def with_fixed_clusters(x):
        return (clustering.merge_clusters(x, score, fixed, count) * probe).sum()

    gradient = jax.jit(jax.grad(with_clustering))(x)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(with_fixed_clusters))(x), atol=1e-6)
    assert jnp.isfinite(gradient).all()
    # Nor is a gradient computed for the distances, the only differentiable part.
    jaxpr = str(
        jax.make_jaxpr(
            lambda x, t: jax.jvp(lambda x: clustering.dpc_knn_cluster(x, count), (x,), (t,))
        )(x, x)
    )
    plain = str(jax.make_jaxpr(lambda x: clustering.dpc_knn_cluster(x, count))(x))
    assert jaxpr.count("dot_general") == plain.count("dot_general")
