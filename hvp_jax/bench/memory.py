"""`bench --config.bench=memory`: the device memory that the loss needs, by global batch size.

Only the loss and its gradient with respect to the features, without the encoders, sharded over
eight devices as in a training step. The numbers are the temporary memory in the compiler's
memory analysis, computed from shapes: nothing is allocated. Times are measured too, at
a batch size at which every variant fits into memory.

Variants: `chunk N`, the function that training calls; `naive`, which computes the scores of all
pairs of a word and a patch of this device's clips at once; `original`, which does so for all
clips on every device, as the original implementation does.
"""

import dataclasses
import functools
import logging
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from data.errors import UsageError
from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.losses import contrastive
from hvp_jax.models.similarity import (
    TextFeatures,
    VideoFeatures,
    sentence_scores,
    terms_of,
    weigh_taps,
)
from hvp_jax.parallel.partitioner import AXIS, make_mesh
from hvp_jax.training import train_step

DEVICES = 8
BATCHES = (512, 1024, 2048, 4096, 8192)
CHUNKS = (2, 4, 8, 16)
TIMED = 128  # global batch size at which the variants are timed
REPEATS = 5

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryResult(BenchResult):
    # By global batch size and variant: MiB per device.
    temporary_mib: dict[int, dict[str, float]] = dataclasses.field(
        metadata={"json": "temporary_MiB"}
    )
    ms: dict[str, float]  # by variant
    ms_batch_size: int
    time_over_naive: dict[str, float]
    repeats: int


def some_devices(count: int = DEVICES) -> list[jax.Device]:
    """`count` real devices, or else simulated ones. Raises UsageError if there are too few."""
    for devices in (jax.devices(), jax.devices("cpu")):
        if len(devices) >= count:
            return devices[:count]
    raise UsageError(
        f"this needs {count} real or simulated devices, and XLA_FLAGS or JAX_PLATFORMS prevents "
        "simulated ones; unset both"
    )


def naive_loss(
    text: TextFeatures,
    video: VideoFeatures,
    log_scale: jax.Array,
    *,
    axis: str | None,
    everywhere: bool,
) -> jax.Array:
    """The loss from scores computed at once: of this device's clips, or `everywhere` of all."""
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
        if everywhere:
            video = jax.lax.all_gather(video, axis, tiled=True)

    def word_patch(patches, weights):  # [b, M, D], [b, M]
        cosine = jnp.einsum("awd,bmd->abwm", text.words, patches)
        of_words = jnp.einsum("abw,aw->ab", cosine.max(axis=3), text.word_weights)
        of_patches = jnp.einsum("abm,bm->ab", cosine.max(axis=2), weights)
        return (of_words + of_patches) / 2

    terms = sentence_scores(text, video)
    if video.patches is not None and video.patch_weights is not None:
        parts = zip(*(x.swapaxes(0, 1) for x in (video.patches, video.patch_weights)), strict=True)
        terms.insert(0, jnp.stack([word_patch(*of_tap) for of_tap in parts]))
    table = weigh_taps(terms, video.tap_weights)  # [terms, L, A, b]
    if axis is not None and not everywhere:
        table = jax.lax.all_gather(table, axis, axis=3, tiled=True)
    return contrastive(table, log_scale, terms=terms_of(video))[0]


@functools.lru_cache
def feature_shapes(model: HVPNet, batch: int, frames: int, words: int) -> tuple:
    """The outputs of the encoders for a global batch, as `ShapeDtypeStruct`s."""
    side = model.clip_config.image_size
    inputs = (
        jax.ShapeDtypeStruct((batch, words), jnp.int32),
        jax.ShapeDtypeStruct((batch, words), bool),
        jax.ShapeDtypeStruct((batch, frames, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, frames), bool),
    )
    (text, video, log_scale), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    return text, video, log_scale


def loss_and_grad(way: str | int, paired: bool, dtype: DTypeLike, mesh: Mesh) -> jax.stages.Wrapped:
    """The loss and its gradient for all features, on a mesh; an integer `way` is a chunk size."""

    def loss(text, video, log_scale):
        if isinstance(way, str):
            return naive_loss(text, video, log_scale, axis=AXIS, everywhere=way == "original")
        return train_step.loss_from_features(
            text, video, log_scale, paired=paired, chunk_size=way, dtype=dtype, axis=AXIS
        )[0]

    split, replicated = PartitionSpec(AXIS), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            jax.value_and_grad(loss, argnums=(0, 1, 2)),
            mesh=mesh,
            in_specs=(split, split, replicated),
            out_specs=(replicated, (split, split, replicated)),
            check_vma=False,  # as in the training step
        )
    )


def shard_shapes(shapes: tuple, mesh: Mesh) -> tuple:
    """Adds the shardings of a training step to the shapes of (text, video, temperature)."""

    def shard(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    text, video, log_scale = shapes
    split = functools.partial(shard, spec=PartitionSpec(AXIS))
    return (
        jax.tree.map(split, text),
        jax.tree.map(split, video),
        shard(log_scale, PartitionSpec()),
    )


def temp_bytes(compute: jax.stages.Wrapped, shapes: tuple) -> int:
    """Temporary bytes on one device, without arguments and results: the compiler's analysis."""
    analysis: Any = compute.lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def median_ms(computes: dict[str, jax.stages.Wrapped], shapes: tuple) -> dict[str, float]:
    """Median milliseconds of each variant on random features; the variants alternate."""
    rng = np.random.default_rng(0)

    def sample(x: jax.ShapeDtypeStruct) -> jax.Array:
        # The same for weights, vectors and sums: the time does not depend on the values.
        values = rng.standard_normal(x.shape, np.float32) / np.sqrt(x.shape[-1] if x.shape else 1)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    inputs = jax.tree.map(sample, shapes)
    ms: dict[str, list[float]] = {name: [] for name in computes}
    for i in range(REPEATS + 1):
        for name, compute in computes.items():
            begin = time.perf_counter()
            jax.block_until_ready(compute(*inputs))
            if i:  # the first call compiles
                ms[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in ms.items()}


def bench_memory(config: ConfigDict, model: HVPNet) -> MemoryResult:
    """Temporary memory per device by global batch size and variant, and times of the variants."""
    mesh = make_mesh(some_devices())
    paired = config.similarity.word_weights == "paired"
    ways: dict[str, int | str] = {
        f"chunk {n}": n for n in sorted({*CHUNKS, config.similarity.chunk_size})
    }
    ways |= {"naive": "naive", "original": "original"}
    computes = {name: loss_and_grad(way, paired, model.dtype, mesh) for name, way in ways.items()}

    def shapes(batch: int) -> tuple:
        return shard_shapes(
            feature_shapes(model, batch, config.data.max_frames, config.data.max_words), mesh
        )

    table = {}
    for batch in BATCHES:
        log.info("compiling the loss of a global batch of %d on %d devices", batch, DEVICES)
        table[batch] = {
            name: temp_bytes(compute, shapes(batch)) / 2**20 for name, compute in computes.items()
        }
    log.info("timing at a global batch of %d", TIMED)
    del computes["original"]  # eight times the work of `naive`
    ms = median_ms(computes, shapes(TIMED))
    result = MemoryResult(
        **describe_run(config),
        temporary_mib=table,
        ms=ms,
        ms_batch_size=TIMED,
        time_over_naive={name: value / ms["naive"] for name, value in ms.items()},
        repeats=REPEATS,
    )
    return dataclasses.replace(result, text=text_of(result, config, model))


def text_of(result: MemoryResult, config: ConfigDict, model: HVPNet) -> str:
    """The table and the times in Markdown."""
    table, ms = result.temporary_mib, result.ms
    names = list(next(iter(table.values())))
    lines = [
        f"Temporary memory of the loss and its gradient, MiB per device, {DEVICES} devices, "
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
        f"Time at a global batch of {TIMED}, median of {REPEATS}, measured on this machine: "
        + ", ".join(
            f"{name} {value:,.0f} ms ({result.time_over_naive[name]:.2f} of naive)"
            for name, value in ms.items()
        )
        + ".",
    ]
    return "\n".join(lines)
