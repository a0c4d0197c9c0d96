"""The verb `bench`: how fast this machine runs a step or the scoring, and of what it could.

Every repeat times the machine's own matrix product beside the work, warm and in turn,
so that a noisy neighbour hurts both; medians are reported.
"""

import functools
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hvp_jax import flops, monitor, step, weights
from hvp_jax.bench_input import bench_input
from hvp_jax.bench_memory import bench_memory, simulate_devices
from hvp_jax.bench_plan import bench_plan
from hvp_jax.config import resolve
from hvp_jax.evaluate import score_matrix
from hvp_jax.model import HVPNet, from_config, init_params
from hvp_jax.parallel import Layout
from hvp_jax.similarity import Text, Video, unit
from hvp_jax.train import recipe_of

REPEATS = 5
PRODUCT = 4096  # side of the matrix product that stands for the machine's rate
GALLERY = 200  # texts, and clips, of the scoring


def seconds(work: Callable) -> float:
    """Wall time of one call, its result awaited."""
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


def product(dtype: jnp.dtype) -> tuple[Callable, float]:
    """A square matrix product on one device, and its operations."""
    x = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), dtype)
    dot = jax.jit(jnp.dot)
    return functools.partial(dot, x, x), 2.0 * PRODUCT**3


def measure(work: Callable, operations: float, dtype: jnp.dtype, devices: int = 1) -> dict:
    """Medians of `work` and of the matrix product, timed in turn."""
    dot, dot_operations = product(dtype)
    jax.block_until_ready(dot())
    # Three products a repeat: a single one is so short that one hiccup would decide it.
    times = [
        (statistics.median(seconds(dot) for _ in range(3)), seconds(work)) for _ in range(REPEATS)
    ]
    dot_time, work_time = (statistics.median(column) for column in zip(*times, strict=True))
    rate, dot_rate = operations / work_time / devices, dot_operations / dot_time
    return {
        "ms": 1000 * work_time,
        "ms_all": [1000 * t for _, t in times],
        "GFLOP": operations / 1e9,
        "GFLOP/s": devices * rate / 1e9,
        "matmul_GFLOP/s": devices * dot_rate / 1e9,
        # Of each repeat by itself: what slows the machine down for a while slows both.
        "share_of_matmul": statistics.median(
            (operations / t / devices) / (dot_operations / d) for d, t in times
        ),
        "repeats": REPEATS,
    }


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
    state = layout.place(step.new_state(params, recipe.optimizer))
    del params
    train_step = layout.train(functools.partial(step.train_step, recipe=recipe), state)
    first = time.perf_counter()
    state, _ = jax.block_until_ready(train_step(state, batch))
    first = time.perf_counter() - first

    def work():
        nonlocal state
        state, metrics = train_step(state, batch)
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


def bench_similarity(config: ConfigDict, model: HVPNet) -> dict:
    """The scores of 200 texts and 200 clips from features that are there already."""
    s, words, taps = model.sizes, config.data.words, len(model.taps)
    tokens = config.data.frames * ((s.image_size // s.patch_size) ** 2 + 1)
    for _ in range(model.stages):
        tokens = (tokens + 1) // 2
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def features(*shape):
        return np.asarray(unit(jax.random.normal(next(keys), (GALLERY, *shape, s.embed_dim))))

    def token_weights(*shape):
        return np.asarray(jax.random.uniform(next(keys), (GALLERY, *shape)))

    text = Text(features(words), token_weights(words), features())
    video = Video(
        features(taps, tokens), token_weights(taps, tokens), features(taps), features(taps)
    )
    work = functools.partial(
        score_matrix, text, video, clip_chunk=config.similarity.chunk, dtype=model.dtype
    )
    first = seconds(work)
    operations = taps * flops.word_patch(GALLERY, words, GALLERY, tokens, s.embed_dim)
    operations += 2 * taps * 2.0 * GALLERY**2 * s.embed_dim
    result = measure(work, operations, model.dtype)
    return result | {
        "compile_s": first - result["ms"] / 1000,
        "pairs/s": GALLERY**2 * 1000 / result["ms"],
        "peak_memory_MiB": peak_memory(jax.devices()[0]) / 2**20,
    }


def peak_memory(device) -> int:
    """Bytes: the device's own count, or on a CPU the greatest size this process had."""
    stats = device.memory_stats() or {}
    return (
        stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )


PARTS = {
    "step": bench_step,
    "similarity": bench_similarity,
    "input": bench_input,
    "memory": bench_memory,
    "plan": bench_plan,
}
# Of compiled programs, for devices that need not be there: how many to simulate.
SIMULATED = {"memory": 8, "plan": 16}


def run(config: ConfigDict, workdir=None) -> dict:
    """The verb: `config.bench` says which part; a workdir gets its bench_PART.json."""
    if config.bench in SIMULATED:
        simulate_devices(SIMULATED[config.bench])
    begin = weights.origin(config)  # for the sizes: the arithmetic is the same for any weights
    config = resolve(config, begin.told)
    model = from_config(config, begin.told.sizes)
    if workdir is not None:
        monitor.make_workdir(workdir)
    part = PARTS[config.bench]
    result = {"bench": config.bench, "variant": config.model.variant, "precision": config.precision}
    result |= {"devices": [str(device) for device in jax.devices()]} | part(config, model)
    if workdir is not None:
        monitor.write_json(workdir / f"bench_{config.bench}.json", result)
    return result
