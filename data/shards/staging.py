"""Where a run of `prepare` leaves finished shards until all of them are finished.

A staging folder contains

    files/NAME       finished shards, and nothing else
    facts/NAME.json  statistics of each: {"examples", "bytes", "sha256"}, written after it
    *.partial        files being written, or left behind by a killed process

A shard is finished if its statistics exist and match it; any other is written again. So a
kill, a crash of the machine or a damaged file costs only the shards that it affects.

In a bucket nothing is renamed: a shard is written on this machine's disk and uploaded under its
final name, and `metadata.json`, the last object of all, says that the shards are complete.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data.storage import files as storage
from data.storage import listing
from data.storage.path import Path, is_bucket

COMPLETE = "metadata.json"


class Staging(NamedTuple):
    """Can be pickled."""

    folder: Path
    files: Path  # the folder of finished shards

    @classmethod
    def of(cls, directory: Path, name: str) -> "Staging":
        """The staging folder `name` of shards that belong into `directory`."""
        folder = directory.parent / name
        return cls(folder, directory if is_bucket(directory) else folder / "files")

    def facts(self, shard: str) -> Path:
        return self.folder / "facts" / f"{shard}.json"


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none if it does not exist."""
    try:
        return storage.names(folder)
    except FileNotFoundError:
        return []


def make(staging: Staging) -> None:
    """Makes the folders if there are none, and removes partial files from them."""
    for folder in (staging.files, staging.folder / "facts"):
        storage.make_folder(folder)
    for name in names_in(staging.folder):
        if name.endswith(".partial"):
            storage.remove(staging.folder / name)


@contextlib.contextmanager
def partial_file(staging: Staging, shard: str) -> Iterator[Path]:
    """A path on this machine's disks for a file that `finish` takes, or that is removed."""
    if is_bucket(staging.folder):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, shard)
        return
    partial = staging.folder / f"{shard}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def finish(staging: Staging, shard: str, partial: Path, examples: int) -> None:
    """Makes a complete partial file a finished shard."""
    stats = {"examples": examples, "bytes": storage.stat(partial).size, "sha256": _digest(partial)}
    _move_durably(partial, staging.files / shard)
    partial.write_text(json.dumps(stats))
    _move_durably(partial, staging.facts(shard))


def publish(
    staging: Staging,
    shards: Collection[str],
    directory: Path,
    write_info: Callable[[Path], None],
) -> None:
    """Completes `directory`, atomically: the finished shards and the files of `write_info`."""
    files = staging.files
    for name in set(names_in(files)).difference(shards):  # left by a call that was killed
        storage.remove(files / name)
    if is_bucket(directory):
        return _upload_info(directory, write_info)
    write_info(files)
    for path in files.iterdir():
        _sync(path)
    _sync(files)
    os.rename(files, directory)
    _sync(directory.parent)


def _upload_info(directory: Path, write_info: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_info(Path(folder))
        for name in sorted(storage.names(folder), key=lambda name: name == COMPLETE):
            storage.upload(Path(folder, name), directory / name)


def read_stats(staging: Staging, shard: str) -> dict[str, Any] | None:
    """{"examples", "bytes", "sha256"} of a shard; None if it is not finished.

    Only its size is compared, not its content.
    """
    try:
        stats = json.loads(storage.read_text(staging.facts(shard)))
        same_size = stats["bytes"] == storage.stat(staging.files / shard).size
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return stats if same_size else None


def read_all_stats(staging: Staging, shards: Collection[str]) -> list[dict[str, Any] | None]:
    """The same of several shards: a bucket is asked for many at a time."""
    with ThreadPoolExecutor(listing.THREADS) as pool:
        return list(pool.map(lambda shard: read_stats(staging, shard), shards))


def is_intact(staging: Staging, shard: str, stats: dict[str, Any]) -> bool:
    """Whether the content of a shard is what its statistics say."""
    return _digest(staging.files / shard) == stats["sha256"]


def _digest(path: Path) -> str:
    with storage.local_copy(path) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_durably(partial: Path, path: Path) -> None:
    """Renames a file once its content is on the disk; returns when the new name is too.

    A bucket gets a copy.
    """
    if is_bucket(path):
        return storage.upload(partial, path)
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
