"""Your own folder of videos: --config.data.root=DIR, which holds videos/ and captions.csv.

`captions.csv` has the columns video_id and caption, and optionally split, start and end.

`:reference` after the file name selects the original's settings; see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "folder"
    return with_form(config, form)
