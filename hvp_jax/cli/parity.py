"""The verb `parity`: the model's arrays against those of PyTorch."""

from pathlib import Path

import jax

from hvp_jax.parity.golden import compare_golden
from hvp_jax.parity.report import ParityReport


def run(
    golden: Path | None = None,
    source: Path | None = None,
    format: str = "auto",
    precision: str | None = None,
) -> ParityReport:
    """Compares a golden file (by default in float64) or a checkpoint in PyTorch (float32)."""
    precision = precision or ("float64" if golden else "float32")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    if source:
        from hvp_jax.parity.torch_checkpoint import compare_checkpoint

        return compare_checkpoint(source, format, precision)
    assert golden is not None  # the command line requires one of the two
    return compare_golden(golden, precision)
