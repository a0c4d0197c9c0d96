"""MSVD: --config.data.annotations=DIR --config.data.videos=DIR.

The annotations are {train,val,test}_list.txt and raw-captions.pkl or JSON.
It has a validation split. All captions of a video are queries.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "msvd"
    config.augment.rand_augment = "rand-m7-n4-mstd0.5-inc1"  # as in the paper
    return with_form(config, form)
