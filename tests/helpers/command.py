"""Runs the command line as users do, and the paths of the repository."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"

# All commands of a test session, in all its processes, share one compilation cache.
if "TEST_COMPILATION_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["TEST_COMPILATION_CACHE"] = CACHE.name
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.environ["TEST_COMPILATION_CACHE"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    # Halves the compile time; no test depends on how fast a command's step is.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


def run_command(
    *command: str | Path, cwd: Path = ROOT, timeout: float = 300, **env: str
) -> Finished:
    """Runs Python with `command` on one CPU device, as on an ordinary machine."""
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
