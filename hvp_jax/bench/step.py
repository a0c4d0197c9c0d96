"""`bench --config.bench=step`: one training step."""

import dataclasses
import functools
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from data.batches.batch import Batch, BatchOfClips, TrainBatch
from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.bench.timing import Measurement, measure, peak_memory_mib
from hvp_jax.config.precision import cast_params
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import train_state
from hvp_jax.training.step_spec import step_spec_from_config
from hvp_jax.training.train_step import train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult(Measurement, BenchResult):
    compile_s: float
    steps_per_s: float = dataclasses.field(metadata={"json": "steps/s"})
    videos_per_s: float = dataclasses.field(metadata={"json": "videos/s"})
    peak_memory_mib: float | None = dataclasses.field(metadata={"json": "peak_memory_MiB"})


def random_batch(config: ConfigDict, model: HVPNet, rng: np.random.Generator) -> TrainBatch:
    """A batch of noise, of different clips, as the config's loss needs it."""
    b, side = config.train.batch_size, model.clip_config.image_size
    shape = (b, config.data.max_frames, side, side, 3)
    words = (b, config.data.max_words)
    batch = Batch(
        text_ids=rng.integers(1, model.clip_config.vocab_size, words, np.int32),
        text_mask=np.ones(words, bool),
        video=rng.integers(0, 256, shape, np.uint8),
        video_mask=np.ones(shape[:2], bool),
    )
    if config.loss.same_video == "negative":
        return batch
    return BatchOfClips(*batch, np.arange(b, dtype=np.int32))


def bench_step(config: ConfigDict, model: HVPNet) -> StepResult:
    """Times the training step on a batch of noise."""
    partitioner = Partitioner(config.parallel, config.fsdp)
    partitioner.check_batch_size(config.train.batch_size, "train.batch_size")
    config.train.steps = config.train.steps or 1000
    spec = step_spec_from_config(config, model, config.train.batch_size)
    batch = partitioner.shard_batch(random_batch(config, model, np.random.default_rng(0)))
    params = cast_params(init_params(model, config.seed), model.dtype)
    assert spec.optimizer is not None, "the spec of a run has one"
    state = partitioner.shard_state(train_state.create_train_state(params, spec.optimizer))
    del params
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    first = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    first = time.perf_counter() - first

    def work() -> tuple:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    operations = flops.training_step(
        model, config.train.batch_size, config.data.max_frames, config.data.max_words
    )
    measured = measure(work, operations, model.dtype, len(partitioner.devices))
    steps_per_s = 1000 / measured.ms
    return StepResult(
        **describe_run(config),
        **vars(measured),
        compile_s=first - measured.ms / 1000,
        steps_per_s=steps_per_s,
        videos_per_s=steps_per_s * config.train.batch_size,
        peak_memory_mib=peak_memory_mib(partitioner.devices[:1]),
    )
