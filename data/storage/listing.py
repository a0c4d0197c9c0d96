"""What is where: files and folders, and the sizes of many files with few requests."""

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data.storage.path import PathLike, is_bucket

THREADS = 32  # that wait for answers of a bucket at the same time


def is_file(path: PathLike) -> bool:
    """Whether there is a file. Raises OSError if a bucket does not say so."""
    return _kind(path) == "file" if is_bucket(path) else os.path.isfile(path)


def is_folder(path: PathLike) -> bool:
    """Whether there is a folder; in a bucket, an object below it. Raises OSError as `is_file`."""
    return _kind(path) == "directory" if is_bucket(path) else os.path.isdir(path)


def find(folder: PathLike) -> list[str]:
    """The paths of all objects below a folder in a bucket, sorted; none if there is no such folder.

    One request lists a thousand of them, whatever folders they are in.
    """
    scheme, system = _file_system(folder)
    return sorted(f"{scheme}://{path}" for path in system.find(os.fspath(folder)))


def sizes(paths: Iterable[PathLike]) -> dict[str, int]:
    """The size in bytes of each of the files that exists.

    Of a bucket, the folders of the files are listed, since a request for each would take long.
    """
    known: dict[str, int] = {}
    in_folder: dict[str, set[str]] = {}
    for path in (os.fspath(path) for path in paths):
        if is_bucket(path):
            in_folder.setdefault(os.path.dirname(path), set()).add(path)
        else:
            with contextlib.suppress(OSError):
                known[path] = os.path.getsize(path)
    with ThreadPoolExecutor(THREADS) as pool:
        for wanted, found in zip(
            in_folder.values(), pool.map(_sizes_in_folder, in_folder), strict=True
        ):
            known |= {path: size for path, size in found.items() if path in wanted}
    return known


def _sizes_in_folder(folder: str) -> dict[str, int]:
    scheme, system = _file_system(folder)
    with contextlib.suppress(FileNotFoundError):
        items = system.ls(folder, detail=True)
        return {f"{scheme}://{x['name']}": x["size"] or 0 for x in items if x["type"] == "file"}
    return {}


def _kind(path: PathLike) -> str:
    with contextlib.suppress(FileNotFoundError):
        return _file_system(path)[1].info(os.fspath(path))["type"]
    return ""


def _file_system(path: PathLike) -> tuple[str, Any]:
    """The scheme of a path in a bucket, and its file system."""
    import fsspec

    scheme = os.fspath(path).partition(":")[0]
    return scheme, fsspec.filesystem(scheme)
