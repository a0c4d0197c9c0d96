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
    """The size in bytes of each of the files that exists."""
    known: dict[str, int] = {}
    on_disk, in_bucket = _by_place(paths)
    for path in on_disk:
        with contextlib.suppress(OSError):
            known[path] = os.path.getsize(path)
    return known | {path: item["size"] or 0 for path, item in _listed(in_bucket).items()}


def versions(paths: Iterable[PathLike]) -> dict[str, str]:
    """What changes when a file changes, of each of the files that exists.

    On a disk it is the size and the time of the last change, in a bucket the object's generation
    (gs://) or its ETag (s3://).
    """
    known: dict[str, str] = {}
    on_disk, in_bucket = _by_place(paths)
    for path in on_disk:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            known[path] = f"{status.st_size}-{status.st_mtime_ns}"
    for path, item in _listed(in_bucket).items():
        known[path] = str(item.get("generation") or item.get("ETag") or item["size"]).strip('"')
    return known


def _by_place(paths: Iterable[PathLike]) -> tuple[list[str], list[str]]:
    """The paths on disks, and those in buckets."""
    texts = [os.fspath(path) for path in paths]
    return [x for x in texts if not is_bucket(x)], [x for x in texts if is_bucket(x)]


def _listed(paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a bucket says of each of the objects that exists.

    The folders of the objects are listed, since a request for each would take long.
    """
    in_folder: dict[str, set[str]] = {}
    for path in paths:
        in_folder.setdefault(os.path.dirname(path), set()).add(path)
    known: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        folders = pool.map(_objects_in_folder, in_folder)
        for wanted, found in zip(in_folder.values(), folders, strict=True):
            known |= {path: item for path, item in found.items() if path in wanted}
    return known


def _objects_in_folder(folder: str) -> dict[str, dict[str, Any]]:
    scheme, system = _file_system(folder)
    with contextlib.suppress(FileNotFoundError):
        items = system.ls(folder, detail=True)
        return {f"{scheme}://{item['name']}": item for item in items if item["type"] == "file"}
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
