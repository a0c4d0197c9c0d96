"""Shards written several at a time, each of them atomically.

A staging folder contains

    files/NAME       finished shards, and nothing else
    facts/NAME.json  statistics of each: {"examples", "bytes", "sha256"}, written after it
    *.partial        files being written, or left behind by a killed process

A shard is finished if its statistics exist and match it; any other is written again. So a
kill, a crash of the machine or a damaged file costs only the shards that it affects.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from data.errors import UsageError
from data.records import Broken
from data.storage import files as storage
from data.storage.path import Path
from data.worker_pool import POLL, IsolatedProcess

SYSTEM_CALL_FAILED = re.compile(r"\b\w+\(\) failed: ([^;]+)")  # ArrayRecord's message
# Of ENOSPC, EDQUOT and EFBIG.
NO_SPACE = ("No space left", "quota exceeded", "File too large")

DecodeEach = Callable[[Iterable[Any]], Iterator[Any]]  # `IsolatedProcess.each`


class ShardTask(NamedTuple):
    """One shard to write; can be pickled."""

    folder: Path
    name: str
    # Yields keys and examples, as a TFDS builder does, or what is wrong with a clip.
    examples: Callable[[DecodeEach], Iterable[tuple[str, dict] | Broken]]
    features: tfds.features.FeaturesDict


def write_records(
    path: str | Path, examples: Iterable[tuple[str, dict]], features: tfds.features.FeaturesDict
) -> int:
    """Writes one ArrayRecord file of keys and examples; returns their number."""
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    count = 0

    def records() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for key, example in examples:
            proto = serializer.get_tf_example(features.encode_example(example))
            # Otherwise the order of fields would differ between processes.
            yield key, proto.SerializeToString(deterministic=True)
            count += 1

    try:
        ArrayRecordFileAdapter.write_examples(path, records())
    except RuntimeError as error:  # of ArrayRecord, of TFDS, or of what decodes the examples
        if not (match := SYSTEM_CALL_FAILED.search(str(error))):
            raise
        full = any(text in match[1] for text in NO_SPACE)
        action = "free some disk space and run `prepare` again" if full else "check its disk"
        raise UsageError(f"cannot write {path}: {match[1]}; {action}") from error
    return count


def prepare_folder(folder: Path) -> None:
    """Makes the staging folder if there is none, and removes partial files from it."""
    for part in ("files", "facts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.partial"):
        path.unlink()


def publish(
    folder: Path, tasks: list[ShardTask], directory: Path, write_info: Callable[[Path], None]
) -> None:
    """Moves the finished shards and the files that `write_info` adds to `directory`, atomically."""
    files = folder / "files"
    names = {task.name for task in tasks}
    for path in files.iterdir():
        if path.name not in names:  # left by a call that was killed
            path.unlink()
    write_info(files)
    for path in files.iterdir():
        sync(path)
    sync(files)
    os.rename(files, directory)
    sync(directory.parent)


def write_shard(
    task: ShardTask, decode_each: DecodeEach, report_done: Callable[[int], None] = lambda n: None
) -> list[Broken]:
    """Writes a shard unless it is finished; returns its broken clips, with which it is not written.

    Several processes may write shards at the same time. report_done(n) is called when n more
    examples are done.
    """
    stats = read_stats(task.folder, task.name)
    if stats and _digest(task.folder / "files" / task.name) == stats["sha256"]:
        report_done(stats["examples"])
        return []
    broken: list[Broken] = []

    def good_examples() -> Iterator[tuple[str, dict]]:
        for item in task.examples(decode_each):
            if isinstance(item, Broken):
                broken.append(item)
            elif not broken:
                yield item
            report_done(1)

    partial = task.folder / f"{task.name}.{uuid.uuid4().hex}.partial"
    try:
        count = write_records(partial, good_examples(), task.features)
        if broken:
            return broken
        stats = {"examples": count, "bytes": storage.stat(partial).size, "sha256": _digest(partial)}
        _move_durably(partial, task.folder / "files" / task.name)
        partial.write_text(json.dumps(stats))
        _move_durably(partial, task.folder / "facts" / f"{task.name}.json")
    finally:
        partial.unlink(missing_ok=True)
    return []


def read_stats(folder: Path, name: str) -> dict[str, Any] | None:
    """{"examples", "bytes", "sha256"} of a shard; None if it is not finished.

    Only its size is compared, not its content.
    """
    try:
        stats = json.loads(storage.read_text(folder / "facts" / f"{name}.json"))
        same_size = stats["bytes"] == storage.stat(folder / "files" / name).size
    except (OSError, ValueError, KeyError):
        return None
    return stats if same_size else None


def require_stats(folder: Path, name: str) -> dict[str, Any]:
    """The same of a shard that is known to be finished."""
    stats = read_stats(folder, name)
    assert stats is not None, f"{folder / name} is not finished"
    return stats


def write_shards(
    tasks: Sequence[ShardTask],
    decode: Callable[[Any], Any],
    processes: int,
    progress: Callable[[int], None],
) -> list[Broken]:
    """Writes all shards, `processes` at a time, each with a process of its own that decodes.

    progress(examples done so far). Returns all broken clips, in the order of the tasks; shards
    with broken clips are not written, all others are. An exception stops all of them;
    finished shards are kept.
    """
    numbers, stop, lock = iter(range(len(tasks))), threading.Event(), threading.Lock()
    broken: dict[int, list[Broken]] = {}
    serial, done = min(processes, len(tasks)) < 2, 0

    def tick(examples: int = 0) -> None:
        nonlocal done
        if stop.is_set():
            raise concurrent.futures.CancelledError
        with lock:
            done += examples
        if serial and examples:
            progress(done)

    def write_some() -> None:
        with IsolatedProcess(decode, tick) as decoder:
            while (number := next(numbers, None)) is not None:
                broken[number] = write_shard(tasks[number], decoder.each, tick)

    if serial:
        write_some()
    else:
        # Threads suffice: they wait for decoding processes, and writing releases the GIL.
        count = min(processes, len(tasks))
        pool = ThreadPoolExecutor(count)
        try:
            waiting = {pool.submit(write_some) for _ in range(count)}
            while waiting:
                ended, waiting = concurrent.futures.wait(
                    waiting, POLL, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    future.result()  # raises what the thread raised
                progress(done)
        finally:
            stop.set()
            pool.shutdown()
    return [clip for number in sorted(broken) for clip in broken[number]]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_durably(partial: Path, path: Path) -> None:
    """Renames a file once its content is on the disk; returns when the new name is too."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
