"""The verb `parity`: numbers of PyTorch against ours."""

from pathlib import Path

import jax

from hvp_jax.parity.golden import compare_golden


def run(
    golden: Path | None = None,
    source: Path | None = None,
    format: str = "auto",
    precision: str | None = None,
) -> dict:
    """The verb: a golden file (in float64 by default), or a checkpoint in PyTorch (float32).

    Returns the table of errors; `ok` is false if one is over tolerance.
    """
    precision = precision or ("float64" if golden else "float32")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    if source:
        from hvp_jax.parity import torch_checkpoint  # which compares as this file does

        return torch_checkpoint.compare_checkpoint(source, format, precision)
    return compare_golden(golden, precision)
