"""Eight simulated devices on the CPU for every test, and the command as users run it."""

import importlib.metadata
import logging
import os
from pathlib import Path

import absl.flags
import jaxtyping
import pytest

from tests.helpers.command import ROOT, Finished, run_command

# JAX reads these when it is first imported, so no import above may import it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# A training step compiles in 4 s of processor time instead of 10: XLA's older code generator for a
# CPU, which JAX 0.12 does not have any more. The results agree to the last digits. Commands that
# tests start inherit it.
FAST_COMPILE = "--xla_cpu_use_fusion_emitters=false"
HAS_IT = importlib.metadata.version("jaxlib").startswith("0.10.")
if HAS_IT and FAST_COMPILE not in os.environ.get("XLA_FLAGS", ""):  # xdist's workers inherit it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()
absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes expect parsed flags
# Checks the annotated shapes and types at run time, in the tests only.
jaxtyping.install_import_hook(
    [*(f"hvp_jax.{x}" for x in ("models", "training", "evaluation", "retrieval")), "data.batches"],
    "beartype.beartype",
)
for name in ("absl", "jax", "orbax", "grain"):
    logging.getLogger(name).setLevel(logging.WARNING)


# The slowest files run first, so that the worker processes finish at about the same time.
SLOW = (
    "test_processes.py",
    "test_train.py",
    "test_sweep.py",
    "test_parity_run.py",
    "test_train_run.py",
    "test_parity.py",
    "test_train_step.py",
    "test_initial.py",
    "test_record_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    last = len(SLOW)
    order = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.name, last))


@pytest.fixture(scope="module")
def quick_compile():
    """Halves XLA's compile time for the tests of a module by fewer optimisations.

    The optimised graph is tested by `parity` of the full-size file.
    """
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def run_cli():
    """`run_cli("train", "--workdir=W")` runs `python run.py train --workdir=W` to completion."""

    def run(*arguments: str | Path, **options) -> Finished:
        return run_command(ROOT / "run.py", *arguments, **options)

    return run


@pytest.fixture(scope="module")
def bucket_server():
    """An emulated gs://bucket, for a fixture of the module that sets its faults back."""
    from tests.helpers.bucket import emulated_bucket  # not for tests without a bucket

    with emulated_bucket() as server:
        yield server
