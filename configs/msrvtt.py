"""MSR-VTT: --config.data.annotations=DIR --config.data.videos=DIR.

The annotations are MSRVTT_data.json and the tables of its splits.
Besides the 1,000 test clips it has no validation split: a seeded 5% of the training videos takes
its place. --config.data.protocol=7k trains on 7,010 videos; full uses the published splits,
which include validation.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "msrvtt"
    config.augment.rand_augment = "rand-m7-n4-mstd0.5-inc1"  # as in the paper
    config.data.val_fraction = 0.05
    return with_form(config, form)
