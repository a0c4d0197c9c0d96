"""An object of a bucket that is replaced only while it is the one that was read.

So of two processes that replace it, one learns that it came too late.
"""

import os
from typing import NamedTuple

from data.storage.files import file_system
from data.storage.path import PathLike


class Version(NamedTuple):
    """The content of an object, and the number that its bucket gave it."""

    content: bytes
    generation: str  # in s3:// its ETag


def read(path: PathLike) -> Version:
    """The object of that name. Raises FileNotFoundError if there is none."""
    with file_system(path) as system:
        return Version(*system.read_version(os.fspath(path)))


def replace(path: PathLike, content: bytes, generation: str) -> bool:
    """Writes an object in the place of that generation; False if it is not there any more.

    After an answer that was lost, and whose request was repeated, it is False as well.
    """
    try:
        with file_system(path) as system:
            system.replace_version(os.fspath(path), content, generation)
    except FileExistsError:
        return False
    return True
