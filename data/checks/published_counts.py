"""What the published data sets hold, to tell a wrong split or a lost file by its count."""

from typing import NamedTuple


class Count(NamedTuple):
    """Of one split; None is not known."""

    videos: int | None = None  # with captions
    captions: int | None = None
    ids: int | None = None  # of videos, those without captions among them


# Data set -> its ways of being split. Where a way has no "val", it is held out of "train".
KNOWN: dict[str, dict[str, dict[str, Count]]] = {
    "msrvtt": {
        "1k-A, 9k": {"train": Count(9000, 180_000), "test": Count(1000, 1000)},
        "1k-A, 7k": {"train": Count(7010, 140_200), "test": Count(1000, 1000)},
        "full": {
            "train": Count(6513, 130_260),
            "val": Count(497, 9940),
            "test": Count(2990, 59_800),
        },
    },
    "didemo": {
        "all": {"train": Count(ids=8392), "val": Count(ids=1065), "test": Count(ids=1004)},
    },
    "activitynet": {
        "val1 for test": {"train": Count(10_009, 10_009, 10_024), "test": Count(4917, 4917, 4926)},
        "val1": {"train": Count(10_009, 10_009, 10_024), "val": Count(4917, 4917, 4926)},
    },
    "lsmdc": {"all": {"val": Count(captions=7408), "test": Count(1000, 1000)}},
    "msvd": {
        "all": {
            "train": Count(1200, 48_774),
            "val": Count(100, 4290),
            "test": Count(670, 27_763),
        },
    },
    "vatex": {
        "all": {"train": Count(ids=25_991), "val": Count(ids=1500), "test": Count(ids=1500)},
    },
    "charades": {"all": {"train": Count(7985), "test": Count(1863)}},
}


def expected(dataset: str, found: dict[str, Count]) -> dict[str, tuple[Count, bool]]:
    """split -> what it should hold, and whether it does, by the way of splitting that fits best.

    Empty where nothing is known of the data set.
    """
    ways = [_compare(way, found) for way in KNOWN.get(dataset, {}).values()]
    best = max(ways, key=_fit, default={})
    return {split: (should, fits) for split, (should, fits, _) in best.items()}


def _fit(way: dict[str, tuple[Count, bool, int]]) -> tuple[int, int]:
    """How many splits are as they should be, and of as many, how few are too many or missing."""
    return sum(fits for _, fits, _ in way.values()), -sum(off for _, _, off in way.values())


def _compare(way: dict[str, Count], found: dict[str, Count]) -> dict[str, tuple[Count, bool, int]]:
    compared = {}
    for split, should in way.items():
        parts = [split] if split != "train" or "val" in way else ["train", "val"]
        there = [found.get(part, Count(0, 0, 0)) for part in parts]
        sums = Count(*map(sum, zip(*there, strict=True)))
        off = sum(abs(a - b) for a, b in zip(should, sums, strict=True) if a is not None)
        compared[split] = should, off == 0, off
    return compared
