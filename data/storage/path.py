"""The one type of path of this project: on this machine's disks, or in a bucket.

`Path("gs://bucket/folder") / "file"` has the methods of pathlib. A bucket has no folders: one
exists while there is an object in it, and `mkdir` does nothing.
"""

import os
import re

# Not the file systems of TensorFlow, which epath prefers if TensorFlow happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec
from etils import epath

Path = epath.Path
PathLike = str | os.PathLike[str]

BUCKET = re.compile(r"(gs|s3)://[\w.-]+(/|$)")


def is_bucket(path: PathLike) -> bool:
    """Whether a path is in a bucket."""
    return bool(BUCKET.match(os.fspath(path)))


def absolute(path: PathLike) -> epath.Path:
    """The path from the root, with symbolic links as they are; one in a bucket as it is."""
    return Path(path) if is_bucket(path) else Path(os.path.abspath(path))


def is_inside(path: PathLike, folder: PathLike) -> bool:
    """Whether a path is below a folder, also after its symbolic links have been followed."""
    if is_bucket(folder):
        return os.fspath(path).startswith(f"{os.fspath(folder).rstrip('/')}/") and (
            ".." not in os.fspath(path).split("/")
        )
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))


# fsspec, and so epath, imports these modules when such a path is first used.
for _protocol, _module in (("gs", "gcs"), ("gcs", "gcs"), ("s3", "s3")):
    _name = f"data.storage.{_module}.FileSystem"
    fsspec.register_implementation(_protocol, _name, clobber=True)
