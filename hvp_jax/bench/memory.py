"""`bench --config.bench=memory`: what the loss needs of a device's memory, by global batch.

The loss and its gradient alone, from features that are there already, laid over eight
devices as a training step lays them: the compiler's own account of its temporary memory,
of shapes alone. Nothing is allocated but for the times, at a size where every way fits.

Ways: `chunk N`, the function that training calls; `naive`, every pair of a word and a patch
of this device's clips at once; `original`, as the original does, of all clips on every device.
"""

import functools
import logging
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data.errors import UsageError
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.losses import contrastive
from hvp_jax.models.similarity import TextFeatures, VideoFeatures
from hvp_jax.parallel.partitioner import AXIS, make_mesh
from hvp_jax.training import train_step

DEVICES = 8
BATCHES = (512, 1024, 2048, 4096, 8192)
CHUNKS = (2, 4, 8, 16)
TIMED = 128  # global batch at which ways are timed
REPEATS = 5

log = logging.getLogger(__name__)


def simulate_devices(count: int = DEVICES) -> None:
    """Splits the CPU into `count` devices. Only works before JAX has looked for devices."""
    if jax.config.jax_num_cpu_devices < count:
        jax.config.update("jax_num_cpu_devices", count)


def some_devices(count: int = DEVICES) -> list:
    """`count` real devices, or else simulated ones. Raises UsageError if there are neither."""
    for devices in (jax.devices(), jax.devices("cpu")):
        if len(devices) >= count:
            return devices[:count]
    raise UsageError(
        f"this needs {count} devices, simulated ones at least, and XLA_FLAGS or JAX_PLATFORMS "
        "forbids them; unset both"
    )


def naive_loss(
    text: TextFeatures,
    video: VideoFeatures,
    log_scale: jax.Array,
    axis: str | None,
    everywhere: bool,
) -> jax.Array:
    """The loss of a table that is made at once; `everywhere`, of all clips on every device."""
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
        if everywhere:
            video = jax.lax.all_gather(video, axis, tiled=True)

    def tap(patches, weights, patch_sum, frame_sum):  # [b, M, D], [b, M], [b, D], [b, D]
        cosine = jnp.einsum("awd,bmd->abwm", text.words, patches)
        of_words = jnp.einsum("abw,aw->ab", cosine.max(axis=3), text.word_weights)
        of_patches = jnp.einsum("abm,bm->ab", cosine.max(axis=2), weights)
        word = (of_words + of_patches) / 2
        return jnp.stack([word, text.sentence @ patch_sum.T, text.sentence @ frame_sum.T])

    parts = video.patches, video.patch_weights, video.patch_sum, video.frame_sum
    taps = [tap(*(x[:, i] for x in parts)) for i in range(video.patches.shape[1])]
    table = jnp.stack(taps, axis=1)  # [3, L, A, b]
    if axis is not None and not everywhere:
        table = jax.lax.all_gather(table, axis, axis=3, tiled=True)
    return contrastive(table, log_scale)[0]


@functools.lru_cache
def feature_shapes(model: HVPNet, batch: int, frames: int, words: int) -> tuple:
    """The shapes of what the encoders give of a global batch, as `ShapeDtypeStruct`s."""
    side = model.clip_config.image_size
    inputs = (
        jax.ShapeDtypeStruct((batch, words), jnp.int32),
        jax.ShapeDtypeStruct((batch, words), bool),
        jax.ShapeDtypeStruct((batch, frames, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, frames), bool),
    )
    (text, video, log_scale), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    return text, video, log_scale


def loss_and_grad(way: str | int, paired: bool, dtype: jnp.dtype, mesh: Mesh) -> Callable:
    """The loss and its gradient by all features, over a mesh; an integer is a chunk's size."""

    def loss(text, video, log_scale):
        if isinstance(way, str):
            return naive_loss(text, video, log_scale, AXIS, everywhere=way == "original")
        return train_step.loss_from_features(
            text, video, log_scale, paired=paired, chunk_size=way, dtype=dtype, axis=AXIS
        )[0]

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            jax.value_and_grad(loss, argnums=(0, 1, 2)),
            mesh=mesh,
            in_specs=(split, split, whole),
            out_specs=(whole, (split, split, whole)),
            check_vma=False,  # as a step is laid
        )
    )


def shard_shapes(shapes: tuple, mesh: Mesh) -> tuple:
    """Shapes of (text, video, temperature) with the way they lie over the mesh."""

    def put(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    split, whole = (
        functools.partial(put, spec=spec) for spec in (PartitionSpec(AXIS), PartitionSpec())
    )
    text, video, log_scale = shapes
    return jax.tree.map(split, text), jax.tree.map(split, video), whole(log_scale)


def temp_bytes(compute: Callable, shapes: tuple) -> int:
    """Bytes on one device beside arguments and results, by the compiler's memory analysis."""
    return compute.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def times(computes: dict[str, Callable], shapes: tuple) -> dict[str, float]:
    """Median milliseconds of each way on random features, timed in turn."""
    rng = np.random.default_rng(0)

    def draw(x):
        # Weights, vectors and sums alike: the arithmetic does not depend on the numbers.
        values = rng.standard_normal(x.shape, np.float32) / np.sqrt(x.shape[-1] if x.shape else 1)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    inputs = jax.tree.map(draw, shapes)
    found = {name: [] for name in computes}
    for i in range(REPEATS + 1):
        for name, compute in computes.items():
            begin = time.perf_counter()
            jax.block_until_ready(compute(*inputs))
            if i:  # the first compiles
                found[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in found.items()}


def bench_memory(config: ConfigDict, model: HVPNet) -> dict:
    """MiB of temporary memory a device by global batch and way, and the time of some ways."""
    mesh = make_mesh(some_devices())
    paired = config.similarity.word_weights == "paired"
    ways = {f"chunk {n}": n for n in sorted({*CHUNKS, config.similarity.chunk_size})}
    ways |= {"naive": "naive", "original": "original"}
    computes = {name: loss_and_grad(way, paired, model.dtype, mesh) for name, way in ways.items()}

    def shapes(batch):
        return shard_shapes(
            feature_shapes(model, batch, config.data.max_frames, config.data.max_words), mesh
        )

    table = {}
    for batch in BATCHES:
        log.info("the loss of a global batch of %d over %d devices", batch, DEVICES)
        table[batch] = {
            name: temp_bytes(compute, shapes(batch)) / 2**20 for name, compute in computes.items()
        }
    log.info("times at a global batch of %d", TIMED)
    del computes["original"]  # eight times the naive way's work
    ms = times(computes, shapes(TIMED))
    result = {
        "temporary_MiB": table,
        "ms": ms,
        "ms_batch_size": TIMED,
        "time_over_naive": {name: value / ms["naive"] for name, value in ms.items()},
        "repeats": REPEATS,
    }
    return result | {"text": text_of(result, config, model)}


def text_of(result: dict, config: ConfigDict, model: HVPNet) -> str:
    """The tables for a person, in Markdown."""
    table, ms = result["temporary_MiB"], result["ms"]
    names = list(next(iter(table.values())))
    lines = [
        f"Temporary memory of the loss and its gradient, MiB a device, {DEVICES} devices, "
        f"{model.dtype}, {config.data.max_frames} frames, {config.data.max_words} words, "
        f"{len(model.taps)} taps, width "
        f"{model.clip_config.embed_dim}: the compiler's memory analysis.",
        "",
        "| global batch | " + " | ".join(names) + " |",
        "| ---: |" + " ---: |" * len(names),
    ]
    lines += [
        f"| {batch:,} | " + " | ".join(f"{row[name]:,.0f}" for name in names) + " |"
        for batch, row in table.items()
    ]
    lines += [
        "",
        f"Time at a global batch of {TIMED}, median of {REPEATS} in turn, measured here: "
        + ", ".join(
            f"{name} {value:,.0f} ms ({result['time_over_naive'][name]:.2f} of naive)"
            for name, value in ms.items()
        )
        + ".",
    ]
    return "\n".join(lines)
