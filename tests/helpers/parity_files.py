"""The golden file of a small model, modified copies of it, and JAX's settings restored."""

import contextlib
import json
from pathlib import Path

import jax
import numpy as np

from tests.helpers.command import GOLDEN

SMALL = GOLDEN / "pytorch_small.npz"
SETTINGS = ("jax_platforms", "jax_enable_x64", "jax_default_matmul_precision")


@contextlib.contextmanager
def restore_settings():
    """`parity` changes JAX's settings; this restores them for the tests that follow."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def write(path: Path, arrays: dict, metadata: dict) -> Path:
    np.savez(path, **arrays)
    path.with_suffix(".json").write_text(json.dumps(metadata))
    return path


def changed(array: np.ndarray) -> np.ndarray:
    """A copy whose greatest value is 1% greater."""
    array = array.astype(array.dtype if array.dtype.kind == "f" else np.float64)
    array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.01
    return array


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # `quick_compile` for a command


def compilation_cache_variables(folder: Path) -> dict[str, str]:
    """Environment variables that make a command share its compiled programs with this process."""
    return QUICK | {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    }
