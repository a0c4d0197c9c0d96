"""How the processes of a run find each other: one a host on a TPU pod, one a node or GPU on Slurm.

On a TPU VM and under `srun` they do it by themselves; elsewhere three flags say it.
"""

import glob
import importlib.util
import logging
import os
import re
import sys

from data.errors import UsageError

# A process that has not been heard of for so long is taken for dead, and ends the others.
SECONDS_TO_DEATH = 60
log = logging.getLogger(__name__)


def parse_flags(coordinator: str | None, processes: str | None, process: str | None) -> dict | None:
    """What `--coordinator`, `--processes` and `--process` say; None without any of them.

    Raises UsageError unless they go together.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if not any(given.values()):
        return None
    lacking = [name for name, value in given.items() if value is None]
    if lacking:
        raise UsageError(
            f"--{lacking[0]} is missing; --coordinator, --processes and --process go together"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UsageError(f"--coordinator={coordinator} is not HOST:PORT")
    if not processes.isdecimal() or int(processes) < 1:
        raise UsageError(f"--processes={processes} is not the number of processes")
    if not process.isdecimal() or int(process) >= int(processes):
        raise UsageError(f"--process={process} must be from 0 to {int(processes) - 1}")
    return {
        "coordinator_address": coordinator,
        "num_processes": int(processes),
        "process_id": int(process),
    }


def initialize(told: dict | None) -> None:
    """Joins the other processes, if there are any; before JAX looks for its devices."""
    # {} is an answer: JAX finds all by itself.
    found = next((x for x in (told, _slurm(), _tpu_vm()) if x is not None), None)
    if found is None:
        return
    import jax

    try:
        jax.distributed.initialize(**found, heartbeat_timeout_seconds=SECONDS_TO_DEATH)
    except RuntimeError as error:
        where = found.get("coordinator_address", "the address that the cluster tells")
        raise UsageError(f"cannot join the other processes at {where}: {error}") from None
    if jax.process_index():
        # One voice is enough; warnings and errors are every process's own.
        for name in ("hvp_jax", "data"):
            logging.getLogger(name).setLevel(logging.WARNING)
    log.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_primary() -> bool:
    """Whether this process gives the answer of all."""
    return not _joined() or sys.modules["jax"].process_index() == 0


def exit_now(status: int) -> None:
    """Ends a process that has failed at once, so that the others hear of it.

    On the ordinary way out it would wait for them, while they wait for it.
    """
    if _joined() and sys.modules["jax"].process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _slurm() -> dict | None:
    """A step of several tasks: JAX reads the rest from the environment."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return None
    # With a task a node, JAX would give it one GPU; it has all of its node.
    alone = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    devices = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": list(range(devices))} if alone and devices else {}


def _tpu_vm() -> dict | None:
    has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    library = importlib.util.find_spec("libtpu") is not None
    wanted = os.environ.get("JAX_PLATFORMS", "tpu") in ("", "tpu")
    return {} if has_tpu and library and wanted else None
