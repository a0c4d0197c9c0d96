"""`bench --config.bench=plan`: estimates of a training step on GPUs that are not available.

Nothing is run. For TPUs, `bench=tpu` has the estimates of their own compiler.

Memory per device is the sum of two parts, both from the compiler's memory analysis:
the step without the loss, which is linear in the examples per device (a line through two batch
sizes, compiled for one simulated device); and the loss, which depends on the global batch size
too (compiled for as many simulated devices as the machine has). XLA compiles for the CPU here;
on other devices it uses other layouts and fusions.

Time is a lower bound: the operations of the step (`hvp_jax/models/flops.py`) at a share of the
published peak, plus the bytes that devices exchange at the published bandwidth of their links,
without overlap of the two.
"""

import dataclasses
import logging
from typing import Any

import jax
from ml_collections import ConfigDict

from hvp_jax.bench.lowering import lower_step
from hvp_jax.bench.machines import MACHINES, SHARE, step_seconds
from hvp_jax.bench.memory import (
    feature_shapes,
    loss_and_grad,
    shard_shapes,
    some_devices,
    temp_bytes,
)
from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.config.resolve import resolve
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, from_config
from hvp_jax.models.tower.tower import REMAT
from hvp_jax.monitoring.accelerators import PEAKS
from hvp_jax.parallel.partitioner import make_mesh

BATCHES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
FITTED = (16, 32)  # examples per device in the two steps that determine the line
CHECKED = 1024  # global batch size of the complete step that the sum is compared with

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanResult(BenchResult):
    machines: dict[str, dict[int, dict[str, Any]]]  # by machine and global batch size
    gib_without_examples: dict[str, float] = dataclasses.field(
        metadata={"json": "GiB_without_examples"}
    )
    mib_each_example: dict[str, float] = dataclasses.field(metadata={"json": "MiB_each_example"})
    sum_over_whole_step: float
    count_over_cost_analysis: float
    share_of_peak_assumed: float


def step_memory(config: ConfigDict, model: HVPNet, batch: int, devices: list[jax.Device]) -> float:
    """Bytes on one device: the state, its shard of the batch, and temporary memory."""
    analysis: Any = lower_step(config, model, batch, devices).compile().memory_analysis()
    # The new state reuses the memory of the old one.
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes


def loss_memory(config: ConfigDict, model: HVPNet, batch: int, devices: int) -> float:
    """Temporary bytes of the loss on one of `devices` devices."""
    mesh = make_mesh(some_devices(devices))
    paired = config.similarity.word_weights == "paired"
    compute = loss_and_grad(config.similarity.chunk_size, paired, model.dtype, mesh)
    shapes = feature_shapes(model, batch, config.data.max_frames, config.data.max_words)
    return temp_bytes(compute, shard_shapes(shapes, mesh))


def fit_memory_line(config: ConfigDict, model: HVPNet) -> tuple[float, float]:
    """Bytes of a step without the loss on a device: without examples, and for each example."""
    device = some_devices(1)
    low, high = (
        step_memory(config, model, size, device) - loss_memory(config, model, size, 1)
        for size in FITTED
    )
    slope = (high - low) / (FITTED[1] - FITTED[0])
    return low - slope * FITTED[0], slope


def counted_over_cost_analysis(config: ConfigDict, model: HVPNet) -> float:
    """Our count of operations divided by XLA's, for a step in which each scan has one iteration.

    XLA counts the body of a loop only once, so the towers have one layer here, and the scores
    are computed in one chunk.
    """
    batch, config = 8, config.copy_and_resolve_references()
    config.similarity.chunk_size = batch
    small = dataclasses.replace(model.clip_config, vision_layers=1, text_layers=1)
    single = model.clone(clip_config=small, taps=(1,), remat="none")
    lowered = lower_step(config, single, batch, some_devices(1))
    ours = flops.training_step(single, batch, config.data.max_frames, config.data.max_words)
    cost: Any = lowered.cost_analysis()
    return ours / cost["flops"]


def bench_plan(config: ConfigDict, model: HVPNet) -> PlanResult:
    """Memory and time for every machine and global batch size: computed, not measured."""
    config.train.steps = config.train.steps or 1000
    config.parallel = "shard_map"  # compiles for any number of simulated devices
    lines, models = {}, {}
    for remat in REMAT:
        log.info("compiling the step, remat %s, with %d and %d examples per device", remat, *FITTED)
        config.model.remat = remat
        models[remat] = from_config(resolve(config), model.clip_config)
        lines[remat] = fit_memory_line(config, models[remat])
    counts = sorted({machine.devices for machine in MACHINES.values()})
    losses = {}
    for devices in counts:
        for batch in BATCHES:
            log.info("compiling the loss of %d examples on %d devices", batch, devices)
            losses[batch, devices] = loss_memory(config, model, batch, devices)

    def total(remat: str, batch: int, devices: int) -> float:
        base, slope = lines[remat]
        return base + slope * batch / devices + losses[batch, devices]

    log.info("compiling the complete step of %d examples on %d devices", CHECKED, counts[0])
    config.model.remat = "dots"
    complete = step_memory(config, models["dots"], CHECKED, some_devices(counts[0]))
    machines = {
        name: {
            batch: step_seconds(config, model, machine, batch)
            | {"GiB": {remat: total(remat, batch, machine.devices) / 2**30 for remat in REMAT}}
            for batch in BATCHES
        }
        for name, machine in MACHINES.items()
    }
    result = PlanResult(
        **describe_run(config),
        machines=machines,
        gib_without_examples={remat: base / 2**30 for remat, (base, _) in lines.items()},
        mib_each_example={remat: slope / 2**20 for remat, (_, slope) in lines.items()},
        sum_over_whole_step=total("dots", CHECKED, counts[0]) / complete,
        count_over_cost_analysis=counted_over_cost_analysis(config, model),
        share_of_peak_assumed=SHARE,
    )
    return dataclasses.replace(result, text=text_of(result, config, model))


def text_of(result: PlanResult, config: ConfigDict, model: HVPNet) -> str:
    """The tables in Markdown. Sizes that exceed the memory of the device are struck out."""
    lines = [
        f"{config.model.variant}, {model.dtype}, {config.data.max_frames} frames, "
        f"{config.data.max_words} words, chunk {config.similarity.chunk_size}. "
        "Computed, not measured.",
    ]
    for name, machine in MACHINES.items():
        peak = PEAKS[machine.kind]
        lines += [
            "",
            f"{name}: {machine.devices} devices of {peak.memory / 2**30:.1f} GiB",
            "",
            "| global batch | per device | step, at least, ms | of it links | "
            "examples/s, at most | " + " | ".join(f"GiB, remat {remat}" for remat in REMAT) + " |",
            "| ---: |" + " ---: |" * (4 + len(REMAT)),
        ]
        for batch, row in result.machines[name].items():
            ms = row["compute_ms"] + row["links_ms"]
            sizes = [
                f"{gib:.1f}" if gib * 2**30 <= peak.memory else f"~~{gib:.1f}~~"
                for gib in row["GiB"].values()
            ]
            lines.append(
                f"| {batch:,} | {batch // machine.devices} | {ms:,.1f} | {row['links_ms']:.1f} | "
                f"{1000 * batch / ms:,.0f} | " + " | ".join(sizes) + " |"
            )
    return "\n".join(
        [
            *lines,
            "",
            f"Assumed: {SHARE:.0%} of the published peak. The estimated memory, divided by the "
            f"analysis of the complete step of {CHECKED:,} examples on "
            f"{min(m.devices for m in MACHINES.values())} devices: "
            f"{result.sum_over_whole_step:.2f}. The counted operations, divided by XLA's count for "
            f"a step without loops: {result.count_over_cost_analysis:.2f}.",
        ]
    )
