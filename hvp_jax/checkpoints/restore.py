"""Reads the arrays of a checkpoint; one process that fails makes all of them fail."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from data.errors import DataError
from hvp_jax.checkpoints import manifest

T = TypeVar("T")


def read_arrays(folder: Path, recorded: dict | None, items: dict) -> dict:
    """The trees of arrays of a step's items, placed like `items`, compared with their seal.

    Raises CorruptCheckpoint, in all processes if in one; DataError if they are of another model.
    """
    if recorded:
        manifest.check_structure(recorded, items, folder)
    # Not by way of the manager, which waits for the other processes: in vain if one fails.
    handler = ocp.StandardCheckpointHandler()

    def read_all() -> dict:
        found = {}
        for item, like in items.items():
            args = ocp.args.StandardRestore(like)
            try:
                found[item] = handler.restore(folder / item, args=args)
            except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # it may be whole
            except Exception as error:  # whatever Orbax and TensorStore make of it
                kind = manifest.CorruptCheckpoint if recorded else DataError
                raise kind(f"{folder}: {item} cannot be read: {_brief(error)}") from None
        return found

    found = fail_together(folder, read_all)
    if recorded:
        manifest.verify(recorded, found, folder)
    return found


def _brief(error: Exception) -> str:
    """The beginning of an error; TensorStore's tell all of their settings."""
    text = str(error).split("\n")[0].split(" [")[0].split(". See full")[0]
    return (text[:160] + "..." if len(text) > 160 else text) or type(error).__name__


def fail_together(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns; raises CorruptCheckpoint in all processes if it does so in one."""
    found = error = None
    try:
        found = read()
    except manifest.CorruptCheckpoint as damage:
        error = damage
    if jax.process_count() > 1:
        sound = multihost_utils.process_allgather(np.int32(error is None)).reshape(-1)
        if error is None and not sound.all():
            error = manifest.CorruptCheckpoint(
                f"{folder}: process {int(np.argmin(sound))} cannot read its part"
            )
    if error:
        raise error
    return found
