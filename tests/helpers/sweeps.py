"""Small sweeps of stub runs."""

import os
import subprocess
import sys
from pathlib import Path

from hvp_jax.sweeps import plan, runner
from tests.helpers import stub_run
from tests.helpers.command import ROOT

FILE = """
from configs.sweeps.base import Sweep, base_config

def get_sweep():
    return Sweep(base_config(None), {settings}, {seeds})
"""
STUB = (sys.executable, stub_run.__file__)
SETTINGS = {"three": {}, "last": {"model.taps": (4,)}}
DRIVER = """
import sys
from pathlib import Path
from hvp_jax.cli.console import quiet_libraries
from hvp_jax.sweeps import plan, runner
quiet_libraries()
file, folder, jobs, steps, cluster, *command = sys.argv[1:]
sweep = plan.load(file, [("train.steps", steps)])
runner.run(sweep, Path(folder), command=command, jobs=int(jobs), cluster=cluster or None)
"""


def write_sweep(path: Path, settings: dict = SETTINGS, seeds: tuple = (0, 1)) -> str:
    """Writes a sweep file and returns its path; of the demo's model."""
    path.write_text(FILE.format(settings=settings, seeds=seeds))
    return str(path)


def execute(file: str, folder: Path, *, steps=2, jobs=None, cluster=None, changes=()) -> list[str]:
    """Executes a sweep of stub runs; the names of those that failed."""
    loaded = plan.load(file, [("train.steps", str(steps)), *changes])
    failed = runner.run(loaded, folder, command=STUB, jobs=jobs, cluster=cluster)
    return [run.name for run in failed]


def start(file: str, folder: Path, *, steps=2, jobs=1, cluster="") -> subprocess.Popen:
    """Starts a sweep of stub runs in a process of its own."""
    arguments = [file, str(folder), str(jobs), str(steps), cluster, *STUB]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def started(folder: Path) -> list[str]:
    """What has been started so far, in order."""
    path = folder / stub_run.RUNS
    return path.read_text().split() if path.exists() else []


def results(folder: Path) -> dict[str, str]:
    """The eval.json of every run."""
    paths = sorted((folder / "runs").glob("*/*/eval.json"))
    return {str(path.relative_to(folder)): path.read_text() for path in paths}
