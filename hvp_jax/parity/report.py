"""Results of `parity`. The order of the fields is the order of the keys in the JSON."""

import dataclasses

from hvp_jax.parity.compare import ArrayResult, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityReport:
    ok: bool  # every array passed


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenReport(ParityReport):
    """A golden file against the model."""

    golden: str
    precision: str
    compared: int
    inputs: list[str]  # arrays that were fed to the model, not compared
    failed: list[str]
    arrays: list[ArrayResult]

    @property
    def text(self) -> str:
        return table(self.arrays, self.precision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointReport(ParityReport):
    """A checkpoint in PyTorch against the model."""

    source: str
    format: str
    against: str  # the library that ran the checkpoint
    precision: str
    compared: int
    failed: list[str]
    arrays: list[ArrayResult]

    @property
    def text(self) -> str:
        return f"against {self.against}\n{table(self.arrays, self.precision)}"
