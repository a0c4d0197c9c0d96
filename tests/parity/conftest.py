"""The small golden file, and JAX's settings as they were before a test."""

import pytest

from hvp_jax.parity.golden import load_golden
from tests.helpers.parity_files import SMALL, same_settings


@pytest.fixture(autouse=True)
def settings():
    with same_settings():
        yield


@pytest.fixture(scope="module", name="golden")
def golden_arrays() -> tuple[dict, dict]:
    """The arrays of the small file and its JSON."""
    return load_golden(SMALL)
