"""One small reader per data set; all of them return the same records."""

from collections.abc import Callable

from data.annotations import activitynet, charades, didemo, lsmdc, msrvtt, msvd, vatex
from data.records import Annotations, DatasetLocation

OWN = ("folder", "shapes")  # in data.root, read by `folder`
PUBLISHED: dict[str, Callable[[DatasetLocation], Annotations]] = {
    "msrvtt": msrvtt.read,
    "didemo": didemo.read,
    "activitynet": activitynet.read,
    "lsmdc": lsmdc.read,
    "msvd": msvd.read,
    "vatex": vatex.read,
    "charades": charades.read,
}
PROTOCOLS = ("msrvtt", "vatex")  # the data sets that have several
DATASETS = (*OWN, *PUBLISHED)
