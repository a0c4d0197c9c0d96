"""`bench --config.bench=step`: one training step."""

import functools
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from data.batches.batch import Batch
from hvp_jax.bench.timing import measure
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.monitoring.throughput import peak_memory
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import train_state
from hvp_jax.training.step_spec import step_spec_from_config
from hvp_jax.training.train_step import train_step


def random_batch(config: ConfigDict, model: HVPNet, rng: np.random.Generator) -> Batch:
    b, side = config.train.batch_size, model.clip_config.image_size
    shape = (b, config.data.max_frames, side, side, 3)
    words = (b, config.data.max_words)
    return Batch(
        text_ids=rng.integers(1, model.clip_config.vocab_size, words, np.int32),
        text_mask=np.ones(words, bool),
        video=rng.integers(0, 256, shape, np.uint8),
        video_mask=np.ones(shape[:2], bool),
    )


def bench_step(config: ConfigDict, model: HVPNet) -> dict:
    """The training step, on one batch of noise."""
    partitioner = Partitioner(config.parallel, config.fsdp)
    partitioner.check_batch_size(config.train.batch_size, "train.batch_size")
    config.train.steps = config.train.steps or 1000
    spec = step_spec_from_config(config, model, config.train.batch_size)
    batch = partitioner.shard_batch(random_batch(config, model, np.random.default_rng(0)))
    params = jax.jit(init_params, static_argnums=(0, 1))(model, config.seed)
    state = partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))
    del params
    laid = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    first = time.perf_counter()
    state, _ = jax.block_until_ready(laid(state, batch))
    first = time.perf_counter() - first

    def work():
        nonlocal state
        state, metrics = laid(state, batch)
        return state, metrics

    operations = flops.training_step(
        model, config.train.batch_size, config.data.max_frames, config.data.max_words
    )
    result = measure(work, operations, model.dtype, len(partitioner.devices))
    rate = 1000 / result["ms"]
    return result | {
        "compile_s": first - result["ms"] / 1000,
        "steps/s": rate,
        "videos/s": rate * config.train.batch_size,
        "peak_memory_MiB": (peak_memory(partitioner.devices[:1]) or 0) / 2**20,
    }
