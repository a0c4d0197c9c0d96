"""VATEX: --config.data.annotations=DIR --config.data.videos=DIR.

The annotations are {train,val,test}_list.txt and vatex_*.json.
It has a validation split. There are two test lists in circulation: if both exist, select one
with --config.data.protocol=NAME, without its `.txt`.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "vatex"
    return with_form(config, form)
