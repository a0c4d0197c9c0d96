"""The shared memory through which worker processes pass batches; containers often have little."""

import os

from data.errors import UsageError

FOLDER = "/dev/shm"
# While a run validates or saves, each worker fills its share: batches that are in its queue, ready
# in this process, and finished in the worker. One more is in use. Counted in Grain 0.2.18.
BATCHES_PER_WORKER = 4


def require_space(workers: int, batch_bytes: int) -> None:
    """Raises UsageError if the batches that workers read ahead do not fit in shared memory.

    A worker that writes to full shared memory is ended by SIGBUS, often hours later.
    """
    needed = (BATCHES_PER_WORKER * workers + 1) * batch_bytes
    free = _free()
    if free is not None and needed > free:
        fitting = max(0, (free // batch_bytes - 1) // BATCHES_PER_WORKER)
        raise UsageError(
            f"config.data.workers={workers} needs {_mib(needed)} of shared memory, and {FOLDER} "
            f"has {_mib(free)} free: {enlarge(needed)}, or set data.workers={fitting}"
        )


def enlarge(needed: int = 1 << 30) -> str:
    """What to do about shared memory that is too small."""
    size = max(1, -(-needed // (1 << 30)))
    return (
        f"enlarge {FOLDER} (docker run --shm-size={size}g, or `mount -o remount,size={size}g "
        f"{FOLDER}`)"
    )


def _free() -> int | None:
    """The bytes that are free; None on a machine that has no such folder."""
    try:
        status = os.statvfs(FOLDER)
    except FileNotFoundError:
        return None
    return status.f_bavail * status.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
