"""What every result of `bench` begins with: what was measured, and on which devices."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchResult:
    bench: str
    variant: str
    precision: str
    devices: list[str]
    text: str | None = dataclasses.field(default=None, metadata={"json": None})


def describe_run(config: ConfigDict) -> dict[str, Any]:
    """The fields of BenchResult."""
    return {
        "bench": config.bench,
        "variant": config.model.variant,
        "precision": config.precision,
        "devices": [str(device) for device in jax.devices()],
    }
