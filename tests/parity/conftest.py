"""The small golden file; JAX's settings are restored after each test."""

import pytest

from hvp_jax.parity.golden import load_golden
from tests.helpers.parity_files import SMALL, restore_settings


@pytest.fixture(autouse=True)
def settings():
    with restore_settings():
        yield


@pytest.fixture(scope="module", name="golden")
def golden_arrays() -> tuple[dict, dict]:
    """The arrays and the metadata (JSON) of the small file."""
    return load_golden(SMALL)
