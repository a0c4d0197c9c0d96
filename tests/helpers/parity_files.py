"""The golden file of a small model, copies of it, and JAX's settings as they were."""

import contextlib
import json
from pathlib import Path

import jax
import numpy as np

from tests.helpers.command import GOLDEN

SMALL = GOLDEN / "pytorch_small.npz"
SETTINGS = ("jax_platforms", "jax_enable_x64", "jax_default_matmul_precision")


@contextlib.contextmanager
def same_settings():
    """`parity` sets JAX up for itself, as a command may; here others follow."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def write(path: Path, arrays: dict, about: dict) -> Path:
    np.savez(path, **arrays)
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def changed(array: np.ndarray) -> np.ndarray:
    """A copy whose greatest number is 1% greater."""
    array = array.astype(array.dtype if array.dtype.kind == "f" else np.float64)
    array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.01
    return array
