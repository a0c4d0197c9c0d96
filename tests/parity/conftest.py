"""The small golden file; JAX's settings are restored after each test."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

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


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of compiled programs, which this process uses too."""
    folder = tmp_path_factory.mktemp("programs")
    names = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
