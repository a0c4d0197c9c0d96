"""Timing of a function relative to what the machine can do.

Every repeat also times a matrix product on the same machine, after warming up and alternating
with the function, so that other load slows down both; medians are reported.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hvp_jax.monitoring.throughput import peak_memory

REPEATS = 5
PRODUCT = 4096  # side of the matrix product that measures the speed of the machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Rates are of all devices together."""

    ms: float
    ms_all: list[float]
    gflop: float = dataclasses.field(metadata={"json": "GFLOP"})
    gflop_per_s: float = dataclasses.field(metadata={"json": "GFLOP/s"})
    matmul_gflop_per_s: float = dataclasses.field(metadata={"json": "matmul_GFLOP/s"})
    share_of_matmul: float
    repeats: int


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call, including the wait for its result."""
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


def matmul(dtype: DTypeLike) -> tuple[Callable[[], jax.Array], float]:
    """A square matrix product on one device, and its number of operations."""
    x = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), dtype)
    return functools.partial(jax.jit(jnp.dot), x, x), 2.0 * PRODUCT**3


def measure(
    work: Callable[[], Any], operations: float, dtype: DTypeLike, devices: int = 1
) -> Measurement:
    """Medians of `work`, which runs on `devices`, and of the matrix product on one device."""
    dot, dot_operations = matmul(dtype)
    jax.block_until_ready(dot())
    # Three products per repeat: one is so short that a single interruption would distort it.
    times = [
        (statistics.median(seconds(dot) for _ in range(3)), seconds(work)) for _ in range(REPEATS)
    ]
    dot_time, work_time = (statistics.median(column) for column in zip(*times, strict=True))
    rate, dot_rate = operations / work_time / devices, dot_operations / dot_time
    return Measurement(
        ms=1000 * work_time,
        ms_all=[1000 * t for _, t in times],
        gflop=operations / 1e9,
        gflop_per_s=devices * rate / 1e9,
        matmul_gflop_per_s=devices * dot_rate / 1e9,
        # Computed per repeat: a temporary slowdown of the machine affects both times.
        share_of_matmul=statistics.median(
            (operations / t / devices) / (dot_operations / d) for d, t in times
        ),
        repeats=REPEATS,
    )


def peak_memory_mib(devices: list[jax.Device]) -> float | None:
    """The peak memory of one of the devices, in MiB; None if they do not report it."""
    peak = peak_memory(devices)
    return None if peak is None else peak / 2**20
