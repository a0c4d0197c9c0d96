"""The command as a person runs it, and where files are."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"

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
