"""The verb `bench`: how fast this machine runs a step or the scoring, and of what it could.

Every repeat times the machine's own matrix product beside the work, warm and in turn,
so that a noisy neighbour hurts both; medians are reported.
"""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

REPEATS = 5
PRODUCT = 4096  # side of the matrix product that stands for the machine's rate


def seconds(work: Callable) -> float:
    """Wall time of one call, its result awaited."""
    begin = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begin


def matmul(dtype: jnp.dtype) -> tuple[Callable, float]:
    """A square matrix product on one device, and its operations."""
    x = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), dtype)
    dot = jax.jit(jnp.dot)
    return functools.partial(dot, x, x), 2.0 * PRODUCT**3


def measure(work: Callable, operations: float, dtype: jnp.dtype, devices: int = 1) -> dict:
    """Medians of `work` and of the matrix product, timed in turn."""
    dot, dot_operations = matmul(dtype)
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
