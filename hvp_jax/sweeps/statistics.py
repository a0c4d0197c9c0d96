"""The difference of two settings, from the ranks of their runs, with a 95% interval.

Two things make it uncertain. The clips of the test split are a sample: they are resampled, with
all captions of a clip together, for both settings and all seeds alike (the paired bootstrap).
And a run depends on its seed: a bootstrap over the three seeds of most sweeps is far too narrow,
so the mean over seeds gets Student's t of their differences instead. The sum of the two gives
the interval and the p-value. The resamples hold a part of the noise of the runs as well, so that
an interval is rather too wide: of settings that differ in nothing but noise, it contains 0 in
95% of sweeps or more (tests/sweeps/test_statistics.py simulates that).

With one seed nothing is known of the noise of runs: there is no interval and no mark.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hvp_jax.evaluation.metrics import summary

LEVEL = 0.95
CLIP_DRAWS, SEED_DRAWS = 2000, 20  # resamples of the clips; draws of Student's t for each
RSUM = ("R@1", "R@5", "R@10")  # of both directions
MEDIAN_BLOCK = 2**22  # draws × queries whose weighted medians are computed at once


class Ranks(NamedTuple):
    """The ranks of a setting's runs in one direction, and the clip that each query is of."""

    ranks: Float[np.ndarray, "seeds queries"]
    clip_of_query: Int[np.ndarray, " queries"]


class Difference(NamedTuple):
    """A setting's figure minus the base's: the mean over seeds, its interval, its p-value.

    The last three are None where fewer than two seeds are in both.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def figures(directions: Mapping[str, Float[np.ndarray, " queries"]]) -> dict[str, float]:
    """`DIRECTION/R@1`, ... of one run from its ranks in each direction, and their `rsum`."""
    flat = {
        f"{direction}/{name}": value
        for direction, ranks in directions.items()
        for name, value in summary(ranks).items()
    }
    return flat | {"rsum": sum(flat[f"{d}/{name}"] for d in directions for name in RSUM)}


def differences(
    base: Mapping[str, Ranks], setting: Mapping[str, Ranks], seed: int = 0
) -> dict[str, Difference]:
    """The difference of every figure of `figures`: `setting` minus `base`.

    Both hold the same directions with the same queries and, row by row, the same seeds. Clips are
    numbered from 0 alike in all directions. `seed` is that of the resampling.
    """
    seeds = len(next(iter(base.values())).ranks)
    rows = [_of_seed(base, setting, row) for row in range(seeds)]
    of_seeds = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    if seeds < 2:
        return {name: Difference(float(values.mean())) for name, values in of_seeds.items()}
    t = np.random.default_rng(seed).standard_t(seeds - 1, SEED_DRAWS * CLIP_DRAWS)
    drawn = _resampled(base, setting, seed)
    return {name: _difference(values, drawn[name], t) for name, values in of_seeds.items()}


def holm(p_values: Sequence[float | None], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several differences are significant together (Holm, 1979).

    The chance that any of them is marked without a true difference is at most `level`. None is
    no test, and is not marked.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    marked = [False] * len(p_values)
    for position, (p, i) in enumerate(tested):
        if p > level / (len(tested) - position):
            break
        marked[i] = True
    return marked


def _of_seed(base, setting, row: int) -> dict[str, float]:
    """The difference of every figure between the two runs of a seed."""
    before, after = (
        figures({direction: ranks.ranks[row] for direction, ranks in runs.items()})
        for runs in (base, setting)
    )
    return {name: value - before[name] for name, value in after.items()}


def _difference(
    of_seeds: Float[np.ndarray, " seeds"],
    drawn: Float[np.ndarray, " draws"],
    t: Float[np.ndarray, " more_draws"],
) -> Difference:
    """The mean over seeds of a figure's difference; `drawn`: the same for each resample."""
    mean = of_seeds.mean()
    # Rounded: a resample without a difference is 0, not 1e-15.
    draws = np.tile(drawn.round(9), SEED_DRAWS) + t * of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    return Difference(float(mean), float(low), float(high), p)


def _resampled(base, setting, seed: int) -> dict[str, Float[np.ndarray, " draws"]]:
    """Every figure's difference, mean over seeds, for each resample of the clips."""
    clips = 1 + max(int(ranks.clip_of_query.max()) for ranks in base.values())
    counts = _clip_counts(clips, seed)
    result: dict[str, np.ndarray] = {}
    for direction, (before, clip_of_query) in base.items():
        after = setting[direction].ranks
        queries = counts @ np.bincount(clip_of_query, minlength=clips)  # [draws]
        for name in summary(before[0]):
            if name == "MdR":
                drawn = [_medians(x, counts, clip_of_query) for x in (after, before)]
                result[f"{direction}/{name}"] = drawn[0] - drawn[1]
                continue
            per_query = (_value(name, after) - _value(name, before)).mean(axis=0)
            sums = np.bincount(clip_of_query, per_query, minlength=clips)
            result[f"{direction}/{name}"] = counts @ sums / queries
    result["rsum"] = np.sum([result[f"{d}/{name}"] for d in base for name in RSUM], axis=0)
    return result


def _value(name: str, ranks: np.ndarray) -> np.ndarray:
    """What a figure, `R@k` or `MnR`, is the mean of."""
    return ranks if name == "MnR" else 100.0 * (ranks <= int(name.removeprefix("R@")))


@functools.lru_cache(maxsize=1)  # the same for every setting of a sweep
def _clip_counts(clips: int, seed: int) -> Float[np.ndarray, "draws clips"]:
    """How often each clip is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clips, np.full(clips, 1 / clips), CLIP_DRAWS).astype(float)


def _medians(
    ranks: Float[np.ndarray, "seeds queries"],
    counts: Float[np.ndarray, "draws clips"],
    clip_of_query: Int[np.ndarray, " queries"],
) -> Float[np.ndarray, " draws"]:
    """The median rank in each resample of the clips, mean over seeds."""
    block = max(1, MEDIAN_BLOCK // ranks.shape[1])
    result = np.zeros(len(counts))
    for row in ranks:
        values, position = np.unique(row, return_inverse=True)
        # [clips, values]: how many queries of a clip have each rank.
        table = np.zeros((counts.shape[1], len(values)))
        np.add.at(table, (clip_of_query, position), 1)
        for first in range(0, len(counts), block):
            upto = np.cumsum(counts[first : first + block] @ table, axis=1)
            size = upto[:, -1:]
            middle = [np.argmax(upto > at, axis=1) for at in ((size - 1) // 2, size // 2)]
            result[first : first + block] += values[np.array(middle)].mean(axis=0)
    return result / len(ranks)
