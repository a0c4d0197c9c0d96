"""MSR-VTT: --config.data.annotations=DIR --config.data.videos=DIR.

The first holds MSRVTT_data.json and the tables of its splits.
It has no validation split beside the 1,000 test clips: a seeded 5% of the training videos is
held out to choose the checkpoint by. --config.data.protocol=7k trains on 7,010 videos, full
takes the splits as published, which have one.

`:reference` after the file's name selects what the original does: see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "msrvtt"
    config.augment.rand_augment = "rand-m7-n4-mstd0.5-inc1"  # as the paper trains on it
    config.data.val_fraction = 0.05
    return with_form(config, form)
