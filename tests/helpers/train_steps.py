"""A small model, its optimiser, batches for it and devices to train it on."""

from unittest import mock

import jax
import numpy as np

from data.batches.batch import Batch
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parallel import partitioner
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training.optimization import optimizer
from tests.helpers.small import SIZES, captions, normal

BATCH, FRAMES, WORDS = 8, 2, 5
MODEL = HVPNet(clip_config=SIZES, taps=(1, 3), stages=1)
OPTIMIZER = optimizer.make_optimizer(1e-4, 1e-4, 10)


def batch_of(seed: int) -> Batch:
    """A batch with float pixels, so that one can be NaN; every other clip has a padded frame."""
    ids, text_mask = captions(seed, BATCH, WORDS)
    video = np.float32(normal(seed, BATCH, FRAMES, SIZES.image_size, SIZES.image_size, 3))
    video_mask = np.ones((BATCH, FRAMES), bool)
    video_mask[::2, 1] = False
    return Batch(ids, text_mask, video, video_mask)


def make_partitioner(kind: str, fsdp: bool, devices: int, slices: int = 1) -> Partitioner:
    """A partitioner of simulated devices, in as many simulated slices."""
    of_a_slice = devices // slices
    with mock.patch.object(partitioner, "slice_index", lambda device: device.id // of_a_slice):
        return Partitioner(kind, fsdp, jax.devices()[:devices])
