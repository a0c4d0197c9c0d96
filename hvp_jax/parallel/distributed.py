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
# What JAX reads in a step of Slurm; without one of them it takes the step for no cluster.
SLURM_NUMBERS = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
SLURM_NAMES = (*SLURM_NUMBERS, "SLURM_STEP_NODELIST")
# The number of processes, as set by mpirun of Open MPI and by mpiexec of MPICH and Intel MPI.
MPI_SIZES = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
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
    arguments = flags if flags is not None else _slurm()
    if arguments is None:
        arguments = _tpu_vm()
    if arguments is None:
        _refuse_other_launchers()
        return
    _check_variables()
    import jax

    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS)
    except (RuntimeError, ValueError, KeyError) as error:
        address = arguments.get("coordinator_address", "the address that the cluster provides")
        unset = isinstance(error, KeyError)  # what JAX raises for a variable of the cluster
        reason = f"{error.args[0]} is not set in the environment" if unset else error
        raise UsageError(f"cannot join the other processes at {address}: {reason}") from None
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
    tasks = _number("SLURM_STEP_NUM_TASKS", 1)
    if tasks < 2:
        return None
    for name in SLURM_NAMES:
        if not os.environ.get(name):
            raise UsageError(
                f"SLURM_STEP_NUM_TASKS is {tasks} and {name} is not set: start every process with "
                "`srun`, or `unset SLURM_STEP_NUM_TASKS` to run one process"
            )
    # With one task per node, JAX would use one GPU; the task has all GPUs of its node.
    one_per_node = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    devices = _number("SLURM_GPUS_ON_NODE", 0)
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return {}
    return {"local_device_ids": list(range(devices))} if one_per_node and devices else {}


def _check_variables() -> None:
    """Raises UsageError, naming it, if JAX would not understand a variable of the environment."""
    if set(SLURM_NAMES) <= os.environ.keys():  # then JAX reads them, whatever the flags are
        for name in SLURM_NUMBERS:
            if not os.environ[name]:
                raise UsageError(f"{name} is set and empty: `unset {name}`, or start with `srun`")
    for name in (*SLURM_NUMBERS, "JAX_COORDINATOR_PORT"):
        _number(name)
    devices = os.environ.get("JAX_LOCAL_DEVICE_IDS", "")
    if devices and not re.fullmatch(r"\d+(,\d+)*", devices):
        raise UsageError(
            f"JAX_LOCAL_DEVICE_IDS is {devices!r}; it is the indices of GPUs, such as 0,1"
        )


def _number(name: str, default: int = 0) -> int:
    """The whole number in an environment variable; `default` if it is not set or empty."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UsageError(
            f"{name} is {text!r} in the environment, not a whole number: `unset {name}`, or start "
            "the processes with `srun`"
        )
    return int(text or default)


def _refuse_other_launchers() -> None:
    """Raises UsageError if this looks like one of several processes, none of which can detect it.

    Each would train alone, and all would write to the same workdir.
    """
    for name, launcher in MPI_SIZES.items():
        if (count := _number(name, 1)) > 1:
            raise UsageError(
                f"{launcher} started {count} processes ({name}), which find each other only by "
                "flags: give each --coordinator, --processes and --process"
            )
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise UsageError(
            f"JAX_COORDINATOR_ADDRESS is {address}, but not how many processes there are: give "
            f"--coordinator={address} with --processes and --process, or unset it"
        )


def _tpu_vm() -> dict | None:
    has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    has_library = importlib.util.find_spec("libtpu") is not None
    wanted = os.environ.get("JAX_PLATFORMS", "tpu") in ("", "tpu")
    return {} if has_tpu and has_library and wanted else None
