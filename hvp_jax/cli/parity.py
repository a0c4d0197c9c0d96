"""The verb `parity`: compares this model with the PyTorch implementation."""

from pathlib import Path

import jax

from hvp_jax.parity.golden import compare_golden


def run(
    golden: Path | None = None,
    source: Path | None = None,
    format: str = "auto",
    precision: str | None = None,
) -> dict:
    """Compares with a golden file (float64 by default) or a PyTorch checkpoint (float32).

    Returns the errors of all arrays; `ok` is false if one exceeds its tolerance.
    """
    precision = precision or ("float64" if golden else "float32")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    if source:
        from hvp_jax.parity import torch_checkpoint  # needs PyTorch

        return torch_checkpoint.compare_checkpoint(source, format, precision)
    assert golden is not None  # the command line requires one of the two
    return compare_golden(golden, precision)
