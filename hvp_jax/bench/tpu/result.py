"""What `bench --config.bench=tpu` reports."""

import dataclasses

from hvp_jax.bench.result import BenchResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveUse:
    """What a chip does in one step with one kind of collective."""

    count: float
    asynchronous: float  # how many of them run beside other work
    bytes: float  # of the complete arrays
    largest_bytes: float  # of the largest complete array
    ms: float  # as if nothing hid them


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceResult:
    """The step on one slice. The estimates are None if no batch fits."""

    device_kind: str
    chips: int
    fits: bool  # the batch that was asked for
    message: str | None  # the compiler's words if it does not fit
    gib_per_chip: float | None  # of the batch that was asked for
    gib_of_a_chip: float
    compile_cpu_s: float  # of the batch that was asked for
    largest_batch: int | None  # that fits, if the batch that was asked for does not
    batch_size: int  # the one that the fields below are about
    estimated_ms: float | None = None
    ideal_ms: float | None = None  # all matrix products at the peak
    share_of_peak: float | None = None
    measured_ms: float | None = None  # where the slice is at hand
    parts: dict[str, float] = dataclasses.field(default_factory=dict)  # ms by part of the model
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)  # ms of Pallas' kernels
    collectives: dict[str, CollectiveUse] = dataclasses.field(default_factory=dict)
    cycles_ms: float | None = None  # the part of estimated_ms that the compiler estimates
    bytes_ms: float | None = None  # the part of instructions without cycles, by their bytes
    copies_ms: float | None = None  # not a part: copies that run beside other instructions
    loops_without_count: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuResult(BenchResult):
    batch_size: int
    topologies: dict[str, SliceResult]
