"""How fast a run goes, and what it waits for: the measured part of its rows."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from hvp_jax.monitoring.accelerators import PEAKS


class ThroughputMeter:
    """Counts from when it is made, at `step`, and from then on between one row and the next.

    `examples_per_step` and `flops_per_step` are of all `devices` together, whose peak is
    that of products of `precision` ("float32" or "bfloat16"). Time in `paused` is left
    out of everything. Steps run on while the loop goes ahead, so a row is right when it
    is asked for once the figures of its step have been fetched.
    """

    def __init__(
        self,
        step: int,
        examples_per_step: int,
        flops_per_step: float,
        devices: Sequence[Any],
        precision: str = "bfloat16",
    ):
        self._examples, self._flops = examples_per_step, flops_per_step
        self._local = [d for d in devices if d.process_index == jax.process_index()]
        self._peak = peak_flops(devices, precision)
        self._idle = 0.0  # seconds in `paused` since the beginning
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._since, self._waited = step, self._now(), 0.0

    def _now(self) -> float:
        """Seconds of a clock that stands still in `paused`."""
        return time.monotonic() - self._idle

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches a batch."""
        begin = self._now()
        yield
        self._waited += self._now() - begin

    @contextlib.contextmanager
    def paused(self, pending: Any = ()) -> Iterator[None]:
        """Around what is no training: evaluation, saving, the call that compiles.

        Waits for the arrays of the tree `pending` first, that of the last step, lest
        steps that still run be done in time that is not counted.
        """
        jax.block_until_ready(pending)
        begin = time.monotonic()
        try:
            yield
        finally:
            self._idle += time.monotonic() - begin

    def measure(self, step: int) -> dict[str, float]:
        """What was measured since the last row, now that `step` steps are done.

        "steps/s" and "examples/s"; "input_wait_share": of the time, in which the loop
        waited for a batch; "peak_flops_share": of what the devices could compute, if that
        is published; "memory_GiB": the most used so far, by the local device that uses
        the most, or on a CPU by this process.
        """
        seconds = max(self._now() - self._since, 1e-9)
        rate = (step - self._step) / seconds
        found = {
            "steps/s": rate,
            "examples/s": rate * self._examples,
            "input_wait_share": self._waited / seconds,
        }
        if self._peak:
            found["peak_flops_share"] = rate * self._flops / self._peak
        memory = peak_memory(self._local)
        if memory:
            found["memory_GiB"] = memory / 2**30
        self._restart(step)
        return found


def peak_flops(devices: Sequence[Any], precision: str) -> float | None:
    """FLOP/s of `devices` together at products of `precision`; None if one has none published."""
    if any(d.device_kind not in PEAKS for d in devices):
        return None
    peaks = [PEAKS[d.device_kind] for d in devices]
    return sum(p.flops if precision == "bfloat16" else p.flops_float32 for p in peaks)


def peak_memory(devices: Sequence[Any]) -> float | None:
    """The most bytes that one of `devices` has held so far; of CPUs, this process.

    None if the devices do not tell.
    """
    if devices[0].platform == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of either system
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    told = [d.memory_stats() or {} for d in devices]
    return max(stats.get("peak_bytes_in_use", 0) for stats in told) or None
