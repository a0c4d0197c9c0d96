"""The intervals of differences, on made-up ranks: how often they contain the truth."""

import numpy as np
import pytest

from hvp_jax.evaluation import metrics
from hvp_jax.sweeps import statistics

CLIPS, CAPTIONS, SWEEPS = 60, 3, 100


def sweep(rng: np.random.Generator, better: float = 0.0, *, seeds: int = 3, run: float = 0.1):
    """The ranks of a base and of a setting, as exp of a sum of a query's parts.

    Both have the same queries, equally hard; each run has noise of its own, as a whole, for each
    clip and for each query. The setting's ranks are smaller by the factor exp(-better).
    """
    clip_of_caption = np.repeat(np.arange(CLIPS), CAPTIONS)
    hard = {
        "text_to_video": rng.normal(1, 1.5, CLIPS)[clip_of_caption]
        + rng.normal(0, 0.5, CLIPS * CAPTIONS),
        "video_to_text": rng.normal(1, 1.5, CLIPS),
    }
    clips = {"text_to_video": clip_of_caption, "video_to_text": np.arange(CLIPS)}

    def setting(shift: float) -> dict[str, statistics.Ranks]:
        whole, of_clip = rng.normal(0, run, (seeds, 1)), rng.normal(0, 0.2, (seeds, CLIPS))
        ranks = {}
        for direction, of_query in hard.items():
            noise = rng.normal(0, 0.3, (seeds, len(of_query)))
            x = of_query + whole + of_clip[:, clips[direction]] + noise - shift
            ranks[direction] = np.maximum(1, np.round(np.exp(x)))
        return {d: statistics.Ranks(ranks[d], clips[d]) for d in hard}

    return setting(0.0), setting(better)


@pytest.mark.parametrize("run", [0.0, 0.15])
def test_the_interval_of_two_settings_that_differ_in_noise_only_contains_0(run):
    rng = np.random.default_rng(0)
    contains: dict[str, int] = {}
    for _ in range(SWEEPS):
        for name, found in statistics.differences(*sweep(rng, run=run)).items():
            assert found.low <= found.mean <= found.high
            contains[name] = contains.get(name, 0) + (found.low <= 0 <= found.high)
    assert len(contains) == 13 and min(contains.values()) >= 93 * SWEEPS / 100, contains


def test_a_known_margin_is_found():
    rng = np.random.default_rng(1)
    found, size = {}, 20
    for _ in range(size):
        for name, x in statistics.differences(*sweep(rng, better=0.6, run=0.03)).items():
            found[name] = found.get(name, 0) + (x.low > 0 or x.high < 0)
            expected = -1 if name.endswith(("MdR", "MnR")) else 1
            assert np.sign(x.mean) == expected or name.endswith("R@50")
    assert found["rsum"] >= 0.9 * size and found["text_to_video/MnR"] >= 0.9 * size, found


def test_a_seed_alone_gives_no_interval():
    base, setting = sweep(np.random.default_rng(2), better=1.0, seeds=1)
    found = statistics.differences(base, setting)["text_to_video/R@1"]
    before, after = (metrics.summary(x["text_to_video"].ranks[0])["R@1"] for x in (base, setting))
    assert found == (after - before, None, None, None)


def test_equal_ranks_do_not_differ():
    base, _ = sweep(np.random.default_rng(3))
    for found in statistics.differences(base, base).values():
        assert found == (0, 0, 0, 1)


def test_the_differences_are_those_of_the_metrics_whatever_the_resampling():
    base, setting = sweep(np.random.default_rng(4), better=0.3)
    found = statistics.differences(base, setting)
    names = [*metrics.summary(np.ones(1))]
    expected = {
        f"{d}/{name}": np.mean(
            [
                metrics.summary(a)[name] - metrics.summary(b)[name]
                for a, b in zip(setting[d].ranks, base[d].ranks, strict=True)
            ]
        )
        for d in base
        for name in names
    }
    expected["rsum"] = sum(expected[f"{d}/R@{k}"] for d in base for k in (1, 5, 10))
    assert {name: x.mean for name, x in found.items()} == pytest.approx(expected)
    assert statistics.differences(base, setting) == found  # seeded
    other = statistics.differences(base, setting, seed=1)
    assert other["rsum"].low != found["rsum"].low
    assert other["rsum"].low == pytest.approx(found["rsum"].low, rel=0.2)


def test_resampled_figures_are_those_of_the_resampled_queries():
    base, setting = sweep(np.random.default_rng(5), better=0.3)
    drawn = statistics._resampled(base, setting, 0)
    counts = statistics._clip_counts(CLIPS, 0).astype(int)
    assert (counts.sum(axis=1) == CLIPS).all()
    for draw in (0, 1, 1999):
        for direction in base:
            times = counts[draw, base[direction].clip_of_query]
            for name in metrics.summary(np.ones(1)):
                values = [
                    metrics.summary(np.repeat(a, times))[name]
                    - metrics.summary(np.repeat(b, times))[name]
                    for a, b in zip(setting[direction].ranks, base[direction].ranks, strict=True)
                ]
                assert drawn[f"{direction}/{name}"][draw] == pytest.approx(np.mean(values))


def test_holm_steps_down():
    # Compared with 0.05/4, 0.05/3 and, where it ends, 0.05/2.
    assert statistics.holm([0.03, 0.012, 0.04, 0.016]) == [False, True, False, True]
    assert statistics.holm([0.03]) == [True]
    assert statistics.holm([0.03, 0.03]) == [False, False]
    assert statistics.holm([0.04, None]) == [True, False]
    assert statistics.holm([]) == []
