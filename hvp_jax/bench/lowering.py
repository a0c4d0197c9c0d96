"""The training step as a program for devices, without any array."""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data.batches.batch import Batch, BatchOfClips, TrainBatch
from hvp_jax.config.precision import cast_params
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import train_state
from hvp_jax.training.step_spec import step_spec_from_config
from hvp_jax.training.train_step import train_step


def lower_step(
    config: ConfigDict, model: HVPNet, batch: int, devices: list[jax.Device]
) -> jax.stages.Lowered:
    """The complete training step of a global batch on `devices`, lowered from shapes.

    The devices may be those of a slice that is not here (`jax.experimental.topologies`).
    """
    partitioner = Partitioner(config.parallel, config.fsdp, devices)
    spec = step_spec_from_config(config, model, batch)
    optimizer = spec.optimizer
    assert optimizer is not None, "the spec of a run has one"
    state = jax.eval_shape(
        lambda: train_state.create_train_state(
            cast_params(init_params(model, config.seed), model.dtype), optimizer
        )
    )
    side, frames, words = (
        model.clip_config.image_size,
        config.data.max_frames,
        config.data.max_words,
    )
    shapes: TrainBatch = Batch(
        text_ids=jax.ShapeDtypeStruct((batch, words), jnp.int32),
        text_mask=jax.ShapeDtypeStruct((batch, words), bool),
        video=jax.ShapeDtypeStruct((batch, frames, side, side, 3), jnp.uint8),
        video_mask=jax.ShapeDtypeStruct((batch, frames), bool),
    )
    if config.loss.same_video != "negative":
        shapes = BatchOfClips(*shapes[:4], jax.ShapeDtypeStruct((batch,), jnp.int32))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    return step.lower(partitioner.abstract_state(state), partitioner.abstract_batch(shapes))
