"""`bench --config.bench=tpu`: the training step, compiled for TPU slices that are not here.

TPU's own compiler runs on any CPU. It says whether the step fits into the memory of the chips, and
estimates its time: `hvp_jax/bench/tpu/estimate.py` says what is summed. An estimate is good for
comparing two programs; it is not a measurement. On a slice that `config.topology` names, the step
is also run and timed.
"""

import dataclasses
import logging

import jax.numpy as jnp
from ml_collections import ConfigDict

from hvp_jax.bench.result import describe_run
from hvp_jax.bench.step import bench_step
from hvp_jax.bench.tpu.compilation import Compilation, compile_step, largest_that_fits
from hvp_jax.bench.tpu.estimate import (
    ASYNC_COLLECTIVE,
    BYTES,
    COLLECTIVE,
    COPY,
    CYCLES,
    KERNEL,
    Estimator,
    Tally,
)
from hvp_jax.bench.tpu.program import parse
from hvp_jax.bench.tpu.result import CollectiveUse, SliceResult, TpuResult
from hvp_jax.bench.tpu.slices import Slice, describe, is_here
from hvp_jax.bench.tpu.table import text_of
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, from_config
from hvp_jax.parallel.partitioner import Partitioner

log = logging.getLogger(__name__)


def bench_tpu(config: ConfigDict, model: HVPNet) -> TpuResult:
    """Compiles the step for every slice that `config.topology` names."""
    config.train.steps = config.train.steps or 1000
    model = from_config(config, model.clip_config, platform="tpu")
    slices = [describe(name) for name in config.topology.split(",")]
    for target in slices:
        partitioner = Partitioner(config.parallel, config.fsdp, target.devices)
        partitioner.check_batch_size(config.train.batch_size, "train.batch_size")
    topologies = {target.name: compile_for(target, config, model) for target in slices}
    result = TpuResult(
        **describe_run(config), batch_size=config.train.batch_size, topologies=topologies
    )
    return dataclasses.replace(result, text=text_of(result, config, model))


def compile_for(target: Slice, config: ConfigDict, model: HVPNet) -> SliceResult:
    """Compiles the step, and if it does not fit, those of smaller batches."""
    asked, chips = config.train.batch_size, len(target.devices)
    compilations: dict[int, Compilation] = {}

    def fits(batch: int) -> bool:
        log.info("compiling the step of %d examples for %s", batch, target.name)
        compilations[batch] = compile_step(config, model, batch, target.devices)
        return bool(compilations[batch].text)

    largest = None if fits(asked) else largest_that_fits(fits, asked, chips)
    first = compilations[asked]
    result = SliceResult(
        device_kind=target.devices[0].device_kind,
        chips=chips,
        fits=largest is None,
        message=first.message or None,
        gib_per_chip=None if first.memory is None else first.memory / 2**30,
        gib_of_a_chip=target.peak.memory / 2**30,
        compile_cpu_s=first.cpu_s,
        largest_batch=largest,
        batch_size=asked if largest is None else largest,
    )
    if not result.batch_size:
        return result
    return with_estimates(result, compilations[result.batch_size].text, target, config, model)


def with_estimates(
    result: SliceResult, text: str, target: Slice, config: ConfigDict, model: HVPNet
) -> SliceResult:
    """Adds what the text of the compiled program says."""
    estimator = Estimator(parse(text), target.peak, target.chip, result.chips // target.slices)
    tally = estimator.total()
    peak = target.peak.flops if model.dtype == jnp.bfloat16 else target.peak.flops_float32
    operations = flops.training_step(
        model, result.batch_size, config.data.max_frames, config.data.max_words
    )
    ideal = operations / result.chips / peak
    return dataclasses.replace(
        result,
        estimated_ms=1000 * tally.seconds(),
        ideal_ms=1000 * ideal,
        share_of_peak=ideal / tally.seconds(),
        measured_ms=bench_step(config, model).ms if result.fits and is_here(target) else None,
        parts={part: 1000 * amount.seconds for part, amount in tally.by("part").items()},
        kernels={name: 1000 * amount.seconds for name, amount in tally.by("name", KERNEL).items()},
        collectives=collectives_of(tally),
        cycles_ms=1000 * tally.seconds(CYCLES),
        bytes_ms=1000 * tally.seconds(BYTES),
        copies_ms=1000 * tally.seconds(COPY),
        loops_without_count=estimator.loops_without_count,
    )


def collectives_of(tally: Tally) -> dict[str, CollectiveUse]:
    """Collectives by kind."""
    asynchronous = tally.by("name", ASYNC_COLLECTIVE)
    return {
        kind: CollectiveUse(
            count=amount.times,
            asynchronous=asynchronous[kind].times if kind in asynchronous else 0,
            bytes=amount.bytes,
            largest_bytes=amount.largest,
            ms=1000 * amount.seconds,
        )
        for kind, amount in tally.by("name", COLLECTIVE, ASYNC_COLLECTIVE).items()
    }
