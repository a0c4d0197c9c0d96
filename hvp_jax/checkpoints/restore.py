"""Reads the arrays of a checkpoint, in one process or several: whole, or Damaged in all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from data.errors import BadData
from hvp_jax.checkpoints import checksums

T = TypeVar("T")


def arrays(folder: Path, sealed: dict | None, items: dict) -> dict:
    """The trees of arrays of a step's items, placed like `items`, compared with their seal.

    Raises Damaged, in all processes if in one, and BadData if they are of another model.
    """
    if sealed:
        checksums.require_fit(sealed, items, folder)
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
                kind = checksums.Damaged if sealed else BadData
                raise kind(f"{folder}: {item} cannot be read: {_brief(error)}") from None
        return found

    found = together(folder, read_all)
    if sealed:
        checksums.check(sealed, found, folder)
    return found


def _brief(error: Exception) -> str:
    """The beginning of an error; TensorStore's tell all of their settings."""
    text = str(error).split("\n")[0].split(" [")[0].split(". See full")[0]
    return (text[:160] + "..." if len(text) > 160 else text) or type(error).__name__


def together(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns; raises Damaged in all processes if it does so in one."""
    found = error = None
    try:
        found = read()
    except checksums.Damaged as damage:
        error = damage
    if jax.process_count() > 1:
        sound = multihost_utils.process_allgather(np.int32(error is None)).reshape(-1)
        if error is None and not sound.all():
            error = checksums.Damaged(
                f"{folder}: process {int(np.argmin(sound))} cannot read its part"
            )
    if error:
        raise error
    return found
