"""A folder of your own, scored and chosen as the original PyTorch code does.

Its scores contain the answer: the weights of the words come from the caption that
is paired with the video, in evaluation too. The checkpoint is chosen on the test split, which
makes figures optimistic. They are here to reproduce its figures and compare with no honest
ones; `configs/folder.py` is sound.
"""

from ml_collections import ConfigDict

from configs.base import as_the_original
from configs.folder import get_config as sound


def get_config() -> ConfigDict:
    return as_the_original(sound())
