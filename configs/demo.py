"""The built-in clips of moving shapes on a CPU; `make demo` runs this config.

The clips are generated in --config.data.root=DIR. A tiny model is trained on them from scratch
in a few minutes on two cores; everything else is as on a pod.
"""

from ml_collections import ConfigDict

from configs.base import get_config as base


def get_config() -> ConfigDict:
    config = base()
    config.data.dataset = "shapes"
    config.data.max_frames = 4  # moving shapes leave a trail, so a few frames show the motion
    config.model.variant = "tiny"
    config.optimizer.learning_rate = 1.5e-3
    config.train.steps = 450
    config.train.eval_every = 150
    config.train.checkpoint_every = 150
    return config
