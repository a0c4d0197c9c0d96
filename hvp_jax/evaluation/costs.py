"""cost.json: what a run takes in time and memory, for comparison with other runs."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path, PathLike
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.monitoring import json_files
from hvp_jax.monitoring.metric_rows.files import read_rows
from hvp_jax.parallel.processes import is_primary

COST_FILE = "cost.json"


def write(
    workdir: PathLike, model: HVPNet, flops_per_step: float, devices: Sequence[jax.Device]
) -> None:
    """Process 0 writes the cost of the run that its metrics record.

    `step_ms` is the median over the logged rows. `peak_memory_mib` is the greatest of them: of
    the device that uses the most, or of the process on a CPU. Either is None where no row has it.
    """
    if not is_primary():
        return
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    logged = [row.get("measured", {}) for row in read_rows(workdir)]
    speeds = [row["steps/s"] for row in logged if row.get("steps/s")]
    memory = [row["memory_GiB"] for row in logged if row.get("memory_GiB")]
    cost = {
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)),
        "flops_per_step": flops_per_step,
        "step_ms": 1000 / statistics.median(speeds) if speeds else None,
        "peak_memory_mib": 1024 * max(memory) if memory else None,
        "device": devices[0].device_kind,
        "devices": len(devices),
    }
    json_files.write_json(Path(workdir) / COST_FILE, cost)


def remove(workdir: PathLike) -> None:
    """Removes the file: while a run goes on, it has no cost yet."""
    storage.remove(Path(workdir) / COST_FILE)


def read(workdir: PathLike) -> dict[str, Any]:
    """What `write` wrote; {} if there is nothing. Raises DataError if the file is damaged."""
    path = Path(workdir) / COST_FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(storage.read_text(path)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged, run `train` again: {error}") from None
