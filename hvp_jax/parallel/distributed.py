"""How the processes of a run find each other: one per host on a TPU pod, per node or GPU on Slurm.

On TPU VMs and under `srun` this is automatic; elsewhere three flags are needed.
"""

import glob
import importlib.util
import logging
import os
import re
import sys

from data.errors import UsageError

# A process that misses its heartbeats for so long counts as dead, and the others end.
HEARTBEAT_TIMEOUT_SECONDS = 60
log = logging.getLogger(__name__)


def parse_flags(coordinator: str | None, processes: str | None, process: str | None) -> dict | None:
    """`--coordinator`, `--processes` and `--process` as arguments of `initialize`.

    None if none of them is given; raises UsageError if only some are, or one is invalid.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    if not any(flags.values()):
        return None
    if coordinator is None or processes is None or process is None:
        missing = next(name for name, value in flags.items() if value is None)
        raise UsageError(
            f"--{missing} is missing; --coordinator, --processes and --process go together"
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


def initialize(flags: dict | None) -> None:
    """Connects to the other processes, if there are any. Must run before JAX finds its devices.

    `flags` are of `parse_flags`; without them, Slurm and TPU VMs are detected.
    """
    # An empty dict counts: JAX then detects everything itself.
    arguments = next((x for x in (flags, _slurm(), _tpu_vm()) if x is not None), None)
    if arguments is None:
        return
    import jax

    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS)
    except RuntimeError as error:
        address = arguments.get("coordinator_address", "the address that the cluster provides")
        raise UsageError(f"cannot join the other processes at {address}: {error}") from None
    if jax.process_index():
        # Process 0 logs for all; every process logs its own warnings and errors.
        for name in ("hvp_jax", "data"):
            logging.getLogger(name).setLevel(logging.WARNING)
    log.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def _initialized() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_primary() -> bool:
    """Whether this process prints the result. Does not import JAX."""
    return not _initialized() or sys.modules["jax"].process_index() == 0


def exit_now(status: int) -> None:
    """Ends a failed process of several at once, so that the others notice.

    An ordinary exit would wait for the other processes, which wait for this one.
    """
    if _initialized() and sys.modules["jax"].process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _slurm() -> dict | None:
    """Arguments under `srun` with several tasks; JAX reads the rest from the environment."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return None
    # With one task per node, JAX would use one GPU; the task has all GPUs of its node.
    one_per_node = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    devices = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": list(range(devices))} if one_per_node and devices else {}


def _tpu_vm() -> dict | None:
    has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    has_library = importlib.util.find_spec("libtpu") is not None
    wanted = os.environ.get("JAX_PLATFORMS", "tpu") in ("", "tpu")
    return {} if has_tpu and has_library and wanted else None
