"""The one type of path of this project: on this machine's disks, or in a bucket.

`Path("gs://bucket/folder") / "file"` has the methods of pathlib. A bucket has no folders: one
exists while there is an object in it, and `mkdir` does nothing.
"""

import functools
import os
import re

# Not the file systems of TensorFlow, which epath prefers if TensorFlow happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils import epath

Path = epath.Path
PathLike = str | os.PathLike[str]

BUCKET = re.compile(r"(gs|s3)://[\w.-]+(/|$)")


def is_bucket(path: PathLike) -> bool:
    """Whether a path is in a bucket."""
    if not BUCKET.match(os.fspath(path)):
        return False
    _register_file_systems()
    return True


def absolute(path: PathLike) -> epath.Path:
    """The path from the root, with symbolic links as they are; one in a bucket as it is."""
    return Path(path) if is_bucket(path) else Path(os.path.abspath(path))


@functools.cache
def _register_file_systems() -> None:
    """Has fsspec, and so epath, use the file systems of this folder."""
    import fsspec  # a tenth of a second, which a command without a bucket need not wait

    for protocol, module in (("gs", "gcs"), ("gcs", "gcs"), ("s3", "s3")):
        name = f"data.storage.{module}.FileSystem"
        fsspec.register_implementation(protocol, name, clobber=True)
