"""Checkpoints that cannot be written, or are written in part: no disk space, no bucket."""

import contextlib
import errno
from collections.abc import Iterator

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path, is_bucket
from hvp_jax.checkpoints import bucket
from hvp_jax.parallel.processes import is_primary

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_TEXTS = ("No space left", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")


@contextlib.contextmanager
def disk_space_guard(path: Path, step: int | None) -> Iterator[None]:
    """Turns running out of disk space while `step` is written to `path` into a one-line DataError.

    Removes what was written of this step; earlier steps stay. A bucket that cannot be written to
    gives a DataError as well.
    """
    try:
        yield
    except Exception as error:
        if found := bucket.fault(error, path):
            raise DataError(
                f"checkpoint of step {step} could not be written to {path}: {found.strerror}; once "
                "that is repaired, run the same command again"
            ) from None
        if is_bucket(path) or not _is_out_of_space(error):
            raise
        remove_partial_checkpoints(path)
        complete = [int(folder.name) for folder in path.glob("*") if folder.name.isdigit()]
        last = (
            f"the last good one is step {max(complete)}"
            if complete
            else "there is no earlier checkpoint"
        )
        raise DataError(
            f"checkpoint of step {step} could not be written to {path}: no space left; "
            f"{last}: free some space and run the same command again"
        ) from None


def remove_partial_checkpoints(path: Path) -> None:
    """Removes what this run, or one that was killed, left partially written."""
    if not is_primary():
        return
    if is_bucket(path):
        bucket.remove_partial(path)
        return
    for folder in path.glob("*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(OSError):
            storage.remove_tree(folder)


def _is_out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, reports a full disk or an exceeded quota or limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
            return True
        if any(text in str(error) for text in NO_SPACE_TEXTS) and "memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
