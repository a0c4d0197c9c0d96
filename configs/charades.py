"""Charades: --config.data.annotations=DIR --config.data.videos=DIR.

The first holds Charades_v1_train.csv and Charades_v1_test.csv.
It has no validation split beside the test: a seeded 5% of the training videos is held out to
choose the checkpoint by.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.data.dataset = "charades"
    config.data.held_out = 0.05
    return config
