"""A folder of your own: --config.data.root=DIR, which holds videos/ and captions.csv.

`captions.csv` has the columns video_id,caption and, if you like, split, start and end.

`:reference` after the file's name selects what the original does: see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "folder"
    return with_form(config, form)
