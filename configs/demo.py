"""The built-in clips of moving shapes on a CPU: what `make demo` runs.

The clips are made in --config.data.root=DIR.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.data.dataset = "shapes"
    config.model.variant = "tiny"
    return config
