"""Reading and writing, on this machine's disks and in buckets alike.

Nothing is appended to, renamed or changed in place in a bucket: an object is written as a whole,
and is there when its upload is complete. Errors are OSErrors whose `strerror` says the reason.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from data.storage import faults
from data.storage.path import Path, PathLike, is_bucket

UPLOAD_BLOCK = 16 * 2**20  # bytes copied at a time


class FileStat(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds since 1970."""

    size: int
    mtime_ns: int


def stat(path: PathLike) -> FileStat:
    """The size and age of a file. Raises FileNotFoundError if there is none."""
    if not is_bucket(path):
        found = os.stat(path)
        return FileStat(found.st_size, found.st_mtime_ns)
    with file_system(path) as system:
        info = system.info(os.fspath(path))
    modified = info.get("mtime") or info.get("LastModified")
    return FileStat(info["size"] or 0, int(modified.timestamp() * 1e9) if modified else 0)


def names(folder: PathLike) -> list[str]:
    """The names of the files and folders in a folder, sorted.

    Raises FileNotFoundError if the folder does not exist.
    """
    if not is_bucket(folder):
        return sorted(os.listdir(folder))
    with file_system(folder) as system:
        paths = system.ls(os.fspath(folder), detail=False)
    found = {os.path.basename(path.rstrip("/")) for path in paths}
    return sorted(found - {""})


def read_bytes(path: PathLike) -> bytes:
    """The content of a file."""
    if is_bucket(path):
        with file_system(path) as system:
            return system.cat_file(os.fspath(path))
    with open(path, "rb") as file:
        return file.read()


def read_text(path: PathLike, errors: str = "strict", encoding: str = "utf-8") -> str:
    """The content of a file, with the line ends of Unix."""
    text = read_bytes(path).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def open_read(path: PathLike) -> Iterator[IO[bytes]]:
    """A file opened for reading bytes, anywhere in it."""
    if is_bucket(path):
        with file_system(path) as system, system.open(os.fspath(path), "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


@contextlib.contextmanager
def open_atomically(
    path: PathLike, mode: str, encoding: str | None = None, errors: str | None = None
) -> Iterator[IO[Any]]:
    """A temporary file, opened for writing, that takes the place of `path` when it is complete.

    Readers see the old file or the new one. On an exception nothing changes.
    """
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "object")
            with open(temporary, mode, encoding=encoding, errors=errors) as file:
                yield file
            upload(temporary, path)
        return
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file atomically."""
    if is_bucket(path):
        with file_system(path) as system:
            return system.pipe_file(os.fspath(path), content)
    with open_atomically(path, "wb") as file:
        file.write(content)


def create(path: PathLike, content: bytes) -> bool:
    """Writes a new file; False, and nothing happens, if there is one of that name.

    Of several processes that try it at once, one gets True.
    """
    if is_bucket(path):
        try:
            with file_system(path) as system:
                system.pipe_file(os.fspath(path), content, mode="create")
        except FileExistsError:
            return False
        return True
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "wb", buffering=0) as file:
        try:
            file.write(content)
            os.fsync(descriptor)
        except OSError:
            os.unlink(path)
            raise
    return True


def upload(local: PathLike, path: PathLike) -> None:
    """Copies a file from this machine's disks to `path`, where it is there when it is complete."""
    if is_bucket(path):
        with file_system(path) as system:
            system.put_file(os.fspath(local), os.fspath(path))
    else:
        with open(local, "rb") as source, open_atomically(path, "wb") as destination:
            shutil.copyfileobj(source, destination, UPLOAD_BLOCK)


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[str]:
    """The path itself if it is on this machine's disks; else that of a copy, until the end.

    For libraries that read a file by its name. The copy has the name of the file.
    """
    if not is_bucket(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(os.fspath(path)))
        with file_system(path) as system:
            system.get_file(os.fspath(path), local)
        yield local


@contextlib.contextmanager
def local_output(path: PathLike) -> Iterator[str]:
    """The path itself if it is on this machine's disks; else that of a file to be uploaded.

    For libraries that write a file by its name. It is uploaded at the end, unless there is an
    exception.
    """
    if not is_bucket(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(os.fspath(path)))
        yield local
        upload(local, path)


def remove(path: PathLike) -> None:
    """Removes a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        if is_bucket(path):
            with file_system(path) as system:
                system.rm_file(os.fspath(path))
        else:
            os.unlink(path)


def remove_tree(folder: PathLike) -> None:
    """Removes a folder and what is in it, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        if is_bucket(folder):
            with file_system(folder) as system:
                system.rm(os.fspath(folder), recursive=True)
        else:
            shutil.rmtree(folder)


def remove_empty_folder(folder: PathLike) -> None:
    """Removes a folder. Raises OSError if something is in it; in a bucket there are none."""
    if not is_bucket(folder):
        os.rmdir(folder)


def move_tree(folder: PathLike, destination: PathLike) -> None:
    """Moves a folder to a name that is not taken; in a bucket it is copied there, then removed."""
    if is_bucket(folder):
        with file_system(folder) as system:
            system.copy(os.fspath(folder), os.fspath(destination), recursive=True)
        remove_tree(folder)
    else:
        os.rename(folder, destination)


def make_folder(folder: PathLike) -> None:
    """Makes a folder and those above it; in a bucket there is nothing to make."""
    if not is_bucket(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def file_system(path: PathLike) -> Iterator[Any]:
    """The file system of a path in a bucket, whose errors name the path."""
    import fsspec

    try:
        yield fsspec.filesystem(os.fspath(path).partition(":")[0])
    except FileNotFoundError as error:
        if error.strerror:
            raise
        raise faults.from_status(404, os.fspath(path), "") from None
    except OSError as error:
        if error.filename and os.fspath(path).startswith(error.filename):
            error.filename = os.fspath(path)  # the request of an upload names the bucket only
        raise
