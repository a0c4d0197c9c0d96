"""Record files written several at a time, each of them whole or not there at all.

A folder of work holds

    files/NAME       finished files, and nothing else
    facts/NAME.json  of each: {"examples", "bytes", "sha256"}, written when it is on the disk
    *.partial        what is being written, or was when a process was killed

A file is finished if its facts are there and are true of it; any other is written again.
So a kill, a crash of the machine or a damaged file costs the files it touches, no more.
"""

import concurrent.futures
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from data.errors import UsageError
from data.records import Broken
from data.worker_pool import POLL, IsolatedProcess

DecodeEach = Callable[[Iterable[Any]], Iterator[Any]]  # `IsolatedProcess.each`


class ShardTask(NamedTuple):
    """One file to write, in a form that can be sent to another process."""

    folder: Path
    name: str
    # Keys and examples, as a TFDS builder yields them, or what is wrong with one.
    examples: Callable[[DecodeEach], Iterable[tuple[str, dict] | Broken]]
    features: tfds.features.FeaturesDict


def write_records(path: str | Path, examples: Iterable[tuple[str, dict]], features) -> int:
    """Writes one ArrayRecord file of keys and examples; returns how many they are."""
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    count = 0

    def records() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for key, example in examples:
            proto = serializer.get_tf_example(features.encode_example(example))
            # Fields would come in an order of their own in every process.
            yield key, proto.SerializeToString(deterministic=True)
            count += 1

    try:
        ArrayRecordFileAdapter.write_examples(path, records())
    except RuntimeError as error:  # what ArrayRecord raises where the disk takes no more
        raise UsageError(
            f"cannot write {path}: {error}; make room, then run `prepare` again"
        ) from error
    return count


def prepare_folder(folder: Path) -> None:
    """Makes a folder of work, or clears one of what a kill left half written."""
    for part in ("files", "facts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.partial"):
        left.unlink()


def publish(
    folder: Path, tasks: list[ShardTask], directory: Path, write_info: Callable[[Path], None]
) -> None:
    """Makes the finished files and what `write_info` adds to them a directory, in one step."""
    files = folder / "files"
    names = {task.name for task in tasks}
    for path in files.iterdir():
        if path.name not in names:  # of a conclusion that was cut off
            path.unlink()
    write_info(files)
    for path in files.iterdir():
        sync(path)
    sync(files)
    os.rename(files, directory)
    sync(directory.parent)


def write_shard(
    task: ShardTask, each: DecodeEach, tick: Callable[[int], None] = lambda n: None
) -> list[Broken]:
    """Writes the file of a task unless it is finished; returns the clips it cannot be made with.

    Any number of processes may do so at once. `each` decodes; tick(n) says that n more
    examples are done.
    """
    facts = read_stats(task.folder, task.name)
    if facts and _digest(task.folder / "files" / task.name) == facts["sha256"]:
        tick(facts["examples"])
        return []
    broken: list[Broken] = []

    def sound() -> Iterator[tuple[str, dict]]:
        for item in task.examples(each):
            if isinstance(item, Broken):
                broken.append(item)
            if not broken:
                yield item
            tick(1)

    partial = task.folder / f"{task.name}.{uuid.uuid4().hex}.partial"
    try:
        count = write_records(partial, sound(), task.features)
        if broken:
            return broken
        facts = {"examples": count, "bytes": partial.stat().st_size, "sha256": _digest(partial)}
        _place(partial, task.folder / "files" / task.name)
        partial.write_text(json.dumps(facts))
        _place(partial, task.folder / "facts" / f"{task.name}.json")
    finally:
        partial.unlink(missing_ok=True)
    return []


def read_stats(folder: Path, name: str) -> dict | None:
    """{"examples", "bytes", "sha256"} of a file; None if it is not finished.

    Only its size is compared, not its content.
    """
    try:
        facts = json.loads((folder / "facts" / f"{name}.json").read_text())
        same = facts["bytes"] == (folder / "files" / name).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return facts if same else None


def write_shards(
    tasks: Sequence[ShardTask],
    work: Callable[[Any], Any],
    processes: int,
    progress: Callable[[int], None],
) -> list[Broken]:
    """Finishes all tasks, `processes` at a time, each with a process that does `work` for it.

    progress(examples done). Returns all clips that are broken, in the order of the tasks:
    files are not made with these, all others are. What is raised ends all; what is finished
    stays.
    """
    numbers, stop, lock = iter(range(len(tasks))), threading.Event(), threading.Lock()
    found: dict[int, list[Broken]] = {}
    alone, done = min(processes, len(tasks)) < 2, 0

    def tick(examples: int = 0) -> None:
        nonlocal done
        if stop.is_set():
            raise concurrent.futures.CancelledError
        with lock:
            done += examples
        if alone and examples:
            progress(done)

    def finish_some() -> None:
        with IsolatedProcess(work, tick) as guard:
            while (number := next(numbers, None)) is not None:
                found[number] = write_shard(tasks[number], guard.each, tick)

    if alone:
        finish_some()
    else:
        # Threads will do: they wait for what is decoded, and writing leaves the interpreter free.
        count = min(processes, len(tasks))
        pool = ThreadPoolExecutor(count)
        try:
            waiting = {pool.submit(finish_some) for _ in range(count)}
            while waiting:
                ended, waiting = concurrent.futures.wait(
                    waiting, POLL, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    future.result()  # raises what was raised there
                progress(done)
        finally:
            stop.set()
            pool.shutdown()
    return [broken for number in sorted(found) for broken in found[number]]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(partial: Path, path: Path) -> None:
    """Gives a file its name when its content is on the disk, and the name is too."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when the file, or the names in the folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
