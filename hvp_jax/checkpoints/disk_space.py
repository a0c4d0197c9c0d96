"""A disk that is full, and checkpoints written in part."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from data.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = ("No space left", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")


@contextlib.contextmanager
def disk_space_guard(path: Path, step: int | None) -> Iterator[None]:
    """Writing `step` into `path` within: if there is no room for it, DataError in one line.

    The steps that are there stay, and what was written of this one goes.
    """
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        remove_partial_checkpoints(path)
        whole = [int(found.name) for found in path.glob("*") if found.name.isdigit()]
        last = f"the last good one is step {max(whole)}" if whole else "there is none before it"
        raise DataError(
            f"checkpoint of step {step} could not be written to {path}: no space left; "
            f"{last}: make room and run the same command again"
        ) from None


def remove_partial_checkpoints(path: Path) -> None:
    """Removes what was written in part, by this run or one that was killed."""
    if jax.process_index() == 0:
        for found in path.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(found, ignore_errors=True)


def _no_space(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is a disk, quota or file that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in FULL_TEXTS) and "memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
