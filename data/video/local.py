"""Video files in a bucket: decoded from a copy on this machine's disks.

FFmpeg looks at a file's name and seeks in it, so a copy has the faults that the file has.
"""

import contextlib
from collections.abc import Iterator

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import is_bucket


@contextlib.contextmanager
def local_video(path: str) -> Iterator[str]:
    """The file itself, or until the end a copy of one in a bucket; errors name the file.

    Of an object in a bucket, raises FileNotFoundError or PermissionError; DataError if the
    bucket cannot be reached, which is not a fault of the file.
    """
    if not is_bucket(path):
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            local = stack.enter_context(storage.local_copy(path))
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}; run the command again") from None
        try:
            yield local
        except DataError as error:
            raise DataError(str(error).replace(local, path)) from error
