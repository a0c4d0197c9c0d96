"""One small reader a data set; all of them return the same records."""

from data.annotations import activitynet, charades, didemo, lsmdc, msrvtt, msvd, vatex

OWN = ("folder", "shapes")  # they lie in data.root
PUBLISHED = {
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
