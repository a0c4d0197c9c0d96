"""VATEX: --config.data.annotations=DIR --config.data.videos=DIR.

The first holds {train,val,test}_list.txt and vatex_*.json.
It has a validation split. Two test lists go about: where both are there, say which with
--config.data.protocol=NAME, less its `.txt`.

`:reference` after the file's name selects what the original does: see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "vatex"
    return with_form(config, form)
