"""A folder of your own: --config.data.root=DIR, which holds videos/ and captions.csv.

`captions.csv` has the columns video_id,caption and, if you like, split, start and end.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.data.dataset = "folder"
    return config
