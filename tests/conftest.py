"""Eight simulated devices on the CPU for every test, and the command as a person runs it."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import absl.flags
import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for parsed flags
for name in ("absl", "jax", "orbax", "grain"):
    logging.getLogger(name).setLevel(logging.WARNING)


# Commands of one test session, in all its processes, compile the same step once between them.
if "COMPILED" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["COMPILED"] = CACHE.name
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.environ["COMPILED"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    # Half the time to compile; every command but one that is timed does as well without.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


def run_command(*command: str | Path, cwd: Path = ROOT, timeout: float = 300, **env: str):
    """Runs Python with `command`; it sees one CPU device, as on a plain machine."""
    inherited = {key: os.environ[key] for key in os.environ if key != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=inherited | COMPILED | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


# The files that take longest are begun with, so that no process of the session ends late.
SLOW = ("test_processes.py", "test_train.py", "test_parity.py", "test_weights.py", "test_step.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    last = len(SLOW)
    order = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.name, last))


@pytest.fixture(scope="session")
def run_cli():
    """`run_cli("train", "--workdir=W")` runs `python run.py train --workdir=W` to its end."""

    def run(*arguments: str | Path, **options) -> Finished:
        return run_command(ROOT / "run.py", *arguments, **options)

    return run
