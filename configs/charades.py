"""Charades: --config.data.annotations=DIR --config.data.videos=DIR.

The annotations are Charades_v1_train.csv and Charades_v1_test.csv.
It has no validation split: a seeded 5% of the training videos takes its place.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "charades"
    config.data.val_fraction = 0.05
    return with_form(config, form)
