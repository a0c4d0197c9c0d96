"""The verb `sweep`: every setting of a sweep with every seed, then the table of all."""

import dataclasses
import os
import sys
from typing import Any

from data.storage.path import Path
from hvp_jax.monitoring.json_files import to_json_types
from hvp_jax.sweeps import runner
from hvp_jax.sweeps.execution.stop import Stopped
from hvp_jax.sweeps.plan import Plan


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The table of a sweep, as `report` gives it; not ok if runs failed."""

    ok: bool
    table: dict[str, Any] = dataclasses.field(metadata={"json": "**"})
    text: str = dataclasses.field(metadata={"json": None})


@dataclasses.dataclass(frozen=True)
class StoppedSweep:
    """The result of a sweep that a signal stopped."""

    ok: bool = dataclasses.field(default=False, init=False)
    text: str = dataclasses.field(metadata={"json": None})


def run(
    config: Plan, workdir: Path, jobs: int | None = None, cluster: str | None = None
) -> SweepResult | StoppedSweep:
    """Executes the runs that have not finished, and compares all settings.

    The flags are explained in `hvp_jax/sweeps/runner.py`.
    """
    command = (sys.executable, os.path.abspath(sys.argv[0]))
    try:
        failed = runner.run(config, workdir, command=command, jobs=jobs, cluster=cluster)
    except Stopped as stopped:
        return StoppedSweep(text=f"stopped by {stopped}: run the same command again to go on")
    from hvp_jax.sweeps import results  # imports Matplotlib

    summary = results.summarize(workdir)
    lines = [f"failed: {run.name}: {run.error()} (see {run.log})" for run in failed]
    return SweepResult(not failed, to_json_types(summary), "\n".join([summary.text, *lines]))
