"""ActivityNet Captions, scored and chosen as the original PyTorch code does.

Its scores contain the answer: the weights of the words come from the caption that is
paired with the video. The checkpoint is chosen on the test split, as in the original and much
of the field, which makes figures optimistic. Paragraphs are cut at 24 words
and 12 frames. `configs/activitynet.py` is sound.
"""

from ml_collections import ConfigDict

from configs.activitynet import get_config as sound
from configs.base import as_the_original


def get_config() -> ConfigDict:
    return as_the_original(sound())
