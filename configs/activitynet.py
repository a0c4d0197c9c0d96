"""ActivityNet Captions: --config.data.annotations=DIR --config.data.videos=DIR.

The annotations are train.json, val_1.json and the lists of ids.
A video has one paragraph: 64 tokens and 64 frames, as is common. `val_1.json` is the test
split, as is common, so a seeded 5% of the training videos is the validation split.

With `:reference` a paragraph is cut to 24 tokens and a video to 12 frames, as in the original;
see `configs/base.py`.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base
from configs.base import with_form


def get_config(form: str | None = None) -> ConfigDict:
    config = base()
    config.data.dataset = "activitynet"
    config.data.max_frames = 64
    config.data.max_words = 64
    config.data.val_fraction = 0.05
    return with_form(config, form)
