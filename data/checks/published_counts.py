"""Counts of the published data sets, which reveal a wrong split or a missing file."""

from typing import NamedTuple


class Count(NamedTuple):
    """Counts of one split; None where unknown."""

    videos: int | None = None  # with captions
    captions: int | None = None
    ids: int | None = None  # videos with or without captions


# Data set -> its protocols. Where one has no "val", that is held out of "train".
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


class Difference(NamedTuple):
    """Between the published counts of a split and the actual ones."""

    published: Count
    total: int  # too many or missing, over all known counts


def compare(dataset: str, actual: dict[str, Count]) -> dict[str, tuple[Count, bool]]:
    """split -> the published counts and whether `actual` equals them, for the closest protocol.

    Empty if the data set's counts are unknown.
    """
    protocols = [_differences(counts, actual) for counts in KNOWN.get(dataset, {}).values()]
    closest = max(protocols, key=_closeness, default={})
    return {split: (diff.published, diff.total == 0) for split, diff in closest.items()}


def _closeness(differences: dict[str, Difference]) -> tuple[int, int]:
    """Protocols with more equal splits are closer, then those with the smaller difference."""
    totals = [diff.total for diff in differences.values()]
    return totals.count(0), -sum(totals)


def _differences(protocol: dict[str, Count], actual: dict[str, Count]) -> dict[str, Difference]:
    differences = {}
    for split, published in protocol.items():
        parts = [split] if split != "train" or "val" in protocol else ["train", "val"]
        counts = [actual.get(part, Count(0, 0, 0)) for part in parts]
        total = 0
        for i, expected in enumerate(published):
            if expected is not None:
                total += abs(expected - sum(count[i] or 0 for count in counts))
        differences[split] = Difference(published, total)
    return differences
