"""`bench --config.bench=step`: one training step."""

import functools
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from hvp_jax.bench.timing import measure
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.monitoring.throughput import peak_memory
from hvp_jax.parallel.partitioner import Layout
from hvp_jax.training import train_state
from hvp_jax.training.step_spec import recipe_of
from hvp_jax.training.train_step import train_step


def random_batch(config: ConfigDict, model: HVPNet, rng: np.random.Generator) -> dict:
    b, side = config.train.batch_size, model.sizes.image_size
    shape = (b, config.data.frames, side, side, 3)
    words = (b, config.data.words)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "video_mask": np.ones(shape[:2], bool),
        "text_ids": rng.integers(1, model.sizes.vocabulary, words, np.int32),
        "text_mask": np.ones(words, bool),
    }


def bench_step(config: ConfigDict, model: HVPNet) -> dict:
    """The training step, on one batch of noise."""
    layout = Layout(config.parallel, config.fsdp)
    layout.check_batch(config.train.batch_size, "train.batch_size")
    config.train.steps = config.train.steps or 1000
    recipe = recipe_of(config, model, config.train.batch_size)
    batch = layout.put(random_batch(config, model, np.random.default_rng(0)))
    params = jax.jit(init_params, static_argnums=(0, 1))(model, config.seed)
    state = layout.place(train_state.new_state(params, recipe.optimizer))
    del params
    laid = layout.train(functools.partial(train_step, recipe=recipe), state)
    first = time.perf_counter()
    state, _ = jax.block_until_ready(laid(state, batch))
    first = time.perf_counter() - first

    def work():
        nonlocal state
        state, metrics = laid(state, batch)
        return state, metrics

    operations = flops.training_step(
        model, config.train.batch_size, config.data.frames, config.data.words
    )
    result = measure(work, operations, model.dtype, len(layout.devices))
    rate = 1000 / result["ms"]
    return result | {
        "compile_s": first - result["ms"] / 1000,
        "steps/s": rate,
        "videos/s": rate * config.train.batch_size,
        "peak_memory_MiB": peak_memory(layout.devices[0]) / 2**20,
    }
