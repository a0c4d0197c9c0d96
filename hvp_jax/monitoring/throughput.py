"""Throughput of a run, its waits and its memory: the part `measured` of its metrics."""

import contextlib
import ctypes
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from hvp_jax.monitoring.accelerators import PEAKS


class ThroughputMeter:
    """Measures throughput between calls of `measure`, the first time from its creation at `step`.

    `examples_per_step` and `flops_per_step` are totals over all `devices`, whose peak is that of
    products in `precision`. Time in `paused` does not count. Steps run
    asynchronously, so call `measure` only after the metrics of its step have been fetched.
    """

    def __init__(
        self,
        step: int,
        examples_per_step: int,
        flops_per_step: float,
        devices: Sequence[Any],
        *,
        precision: str = "bfloat16",
    ):
        self._examples, self._flops = examples_per_step, flops_per_step
        self._local = [d for d in devices if d.process_index == jax.process_index()]
        self._peak = peak_flops(devices, precision)
        self._paused_seconds = 0.0
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._since, self._waited = step, self._now(), 0.0

    def _now(self) -> float:
        """The time in seconds of a clock that stops in `paused`."""
        return time.monotonic() - self._paused_seconds

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For the code that fetches a batch."""
        start = self._now()
        yield
        self._waited += self._now() - start

    @contextlib.contextmanager
    def paused(self, pending: Any = ()) -> Iterator[None]:
        """For code that is not training: evaluation, saving, compilation.

        Waits first for the arrays `pending` of the last step, so that the time of steps that still
        run is counted.
        """
        jax.block_until_ready(pending)
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused_seconds += time.monotonic() - start

    def measure(self, step: int) -> dict[str, float]:
        """The measurements since the last call, after `step` steps.

        "steps/s"; "examples/s"; "input_wait_share", the share of time spent waiting for batches;
        "peak_flops_share", the share of the devices' peak FLOP/s, if that is published; and
        "memory_GiB", the peak memory so far of the local device that uses the most, or of this
        process on a CPU.
        """
        seconds = max(self._now() - self._since, 1e-9)
        steps_per_second = (step - self._step) / seconds
        measured = {
            "steps/s": steps_per_second,
            "examples/s": steps_per_second * self._examples,
            "input_wait_share": self._waited / seconds,
        }
        if self._peak:
            measured["peak_flops_share"] = steps_per_second * self._flops / self._peak
        memory = peak_memory(self._local)
        if memory:
            measured["memory_GiB"] = memory / 2**30
        self._restart(step)
        return measured


def peak_flops(devices: Sequence[Any], precision: str) -> float | None:
    """Total peak FLOP/s of `devices` in `precision`; None if a device has no published peak."""
    if precision == "float64" or any(d.device_kind not in PEAKS for d in devices):
        return None
    peaks = [PEAKS[d.device_kind] for d in devices]
    return sum(p.flops if precision == "bfloat16" else p.flops_float32 for p in peaks)


def release_freed_memory() -> None:
    """Returns freed memory of this process to the system, where its C library can (glibc).

    A compiler frees hundreds of MiB that the allocator would keep.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(devices: Sequence[Any]) -> float | None:
    """Peak bytes in use so far on any of `devices`, or of this process if they are CPUs.

    None if the devices do not report it.
    """
    if devices[0].platform == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB, see getrusage(2)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    stats = [d.memory_stats() or {} for d in devices]
    return max(s.get("peak_bytes_in_use", 0) for s in stats) or None
