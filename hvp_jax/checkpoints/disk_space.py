"""Running out of disk space, and partially written checkpoints."""

import contextlib
import errno
import shutil
from collections.abc import Iterator

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.parallel.processes import is_primary

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_TEXTS = ("No space left", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")


@contextlib.contextmanager
def disk_space_guard(path: Path, step: int | None) -> Iterator[None]:
    """Turns running out of disk space while `step` is written to `path` into a one-line DataError.

    Removes what was written of this step; earlier steps stay.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_space(error):
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
    if is_primary():
        for folder in path.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(folder, ignore_errors=True)


def _is_out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, reports a full disk or an exceeded quota or limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
            return True
        if any(text in str(error) for text in NO_SPACE_TEXTS) and "memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
