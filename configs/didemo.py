"""DiDeMo: --config.data.annotations=DIR --config.data.videos=DIR.

The first holds {train,val,test}_data.json and {train,val,test}_list.txt.
A video has one paragraph: 64 words and 64 frames, as the field does. It has a validation split.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.data.dataset = "didemo"
    config.data.frames = 64
    config.data.words = 64
    return config
