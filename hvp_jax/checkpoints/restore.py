"""Reads the arrays of a checkpoint; if one process finds damage, all of them raise the error."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.checkpoints import bucket, manifest
from hvp_jax.parallel.processes import all_gather_hosts

T = TypeVar("T")


def read_arrays(
    folder: Path, recorded: dict[str, Any] | None, items: dict[str, Any]
) -> dict[str, Any]:
    """The array trees of a step's items, sharded like `items` and verified by their checksums.

    `recorded` is the step's manifest; None: it was written before there were any.
    Raises CorruptCheckpoint, in all processes if in one; DataError if the arrays are of another
    model.
    """
    if recorded:
        manifest.check_structure(recorded, items, folder)
    # Not through the manager, which waits for the other processes: forever if one of them fails.
    handler = ocp.StandardCheckpointHandler()

    def read_all() -> dict[str, Any]:
        restored = {}
        for item, like in items.items():
            args = ocp.args.StandardRestore(like)
            try:
                restored[item] = handler.restore(folder / item, args=args)
            except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # the checkpoint itself may be intact
            except Exception as error:  # whatever Orbax and TensorStore raise
                if found := bucket.fault(error, folder):
                    raise found from None  # as above
                kind = manifest.CorruptCheckpoint if recorded else DataError
                raise kind(f"{folder}: {item} cannot be read: {_brief(error)}") from None
        return restored

    restored = fail_together(folder, read_all)
    if recorded:
        manifest.verify(recorded, restored, folder)
    return restored


def _brief(error: Exception) -> str:
    """The beginning of an error's message; TensorStore appends all of its settings."""
    text = str(error).split("\n")[0].split(" [")[0].split(". See full")[0]
    return (text[:160] + "..." if len(text) > 160 else text) or type(error).__name__


def fail_together(folder: Path, read: Callable[[], T]) -> T:
    """The result of `read`; raises CorruptCheckpoint in all processes if one of them does."""
    result = error = None
    try:
        result = read()
    except manifest.CorruptCheckpoint as damage:
        error = damage
    succeeded = all_gather_hosts(np.array(error is None)).reshape(-1)  # [processes]
    if error is None and not succeeded.all():
        error = manifest.CorruptCheckpoint(
            f"{folder}: process {int(np.argmin(succeeded))} cannot read its part"
        )
    if error:
        raise error
    return cast(T, result)  # there is a result where there is no error
