"""The report of a whole run against PyTorch's. The order of the fields is that of the JSON."""

import dataclasses

from hvp_jax.parity.compare import ArrayResult, OverTolerance, table
from hvp_jax.parity.report import ParityReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveOut(OverTolerance):
    """A curve over tolerance, and the first step, counted from 1, where it is."""

    step: int
    golden: float
    computed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float32Runs:
    """PyTorch's float32 run and ours, both against PyTorch's float64.

    `greatest_error`: number of leading steps -> greatest error of the loss, of its greatest value.
    `quarters`: mean of the loss over each quarter of the run. None: not recorded in the file.
    """

    greatest_error: dict[str, dict[int, float | None]]
    quarters: dict[str, list[float] | None]

    @property
    def text(self) -> str:
        def cell(value: float | None) -> str:
            return f"{'-' if value is None else format(value, '.2g'):>9}"

        windows = next(iter(self.greatest_error.values()))
        lines = ["greatest error of the loss against PyTorch's float64, within the first steps:"]
        lines.append(f"{'':<18}" + "".join(f"{n:>9}" for n in windows))
        for name, errors in self.greatest_error.items():
            lines.append(f"{name:<18}" + "".join(map(cell, errors.values())))
        lines.append("mean of the loss over each quarter of the run:")
        for name, means in self.quarters.items():
            lines.append(f"{name:<18}" + "".join(f"{x:>9.3f}" for x in means or ()))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport(ParityReport):
    """A whole run against PyTorch's. `first_out`: where the loss first leaves the tolerance."""

    golden: str
    precision: str
    parallel: str
    devices: int
    steps: int
    judged_steps: int
    compared: int
    failed: list[str]
    first_out: CurveOut | None
    greatest_errors: dict[str, float]  # of the curves, of the weights by snapshot, of the scores
    float32: Float32Runs | None
    plot: str | None
    arrays: list[ArrayResult]

    @property
    def text(self) -> str:
        parts = [table(self.arrays, self.precision)]
        if self.float32:
            parts.append(self.float32.text)
        parts.append("\n".join(f"{k}: {v:.2e}" for k, v in self.greatest_errors.items()))
        if self.plot:
            parts.append(f"both curves: {self.plot}")
        parts.append(f"{self._curve()} ({self.parallel}, {self.devices} of the CPU's devices)")
        if self.failed:
            parts.append(f"FAILED: {', '.join(self.failed)}")
        return "\n\n".join(parts)

    def _curve(self) -> str:
        """What became of the loss."""
        out = self.first_out
        if out:
            return (
                f"the loss leaves PyTorch's at step {out.step} of {self.steps}: it is "
                f"{out.computed:.10g} instead of {out.golden:.10g}; the greatest error of all "
                f"steps is {out.relative:.2e} of the greatest loss, the tolerance "
                f"{out.tolerance:.0e}"
            )
        if self.precision == "float32":
            return (
                "float32 cannot follow a curve step by step: means over quarters of the run are "
                "compared"
            )
        text = f"the loss follows PyTorch's for {self.judged_steps} of {self.steps} steps"
        if self.judged_steps < self.steps:
            text += "; in the others PyTorch's own run depends on rounding"
        return text
