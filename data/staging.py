"""Record files written by several processes, each of them whole or not there at all.

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
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from hvp_jax.errors import BadUse

POLL = 0.2  # seconds between two looks at what the processes have done

Examples = Iterable[tuple[str, dict]]  # keys and examples, as a TFDS builder yields them


class Task(NamedTuple):
    """One file to write, in a form that can be sent to another process."""

    folder: Path
    name: str
    examples: Callable[[], Examples]
    features: tfds.features.FeaturesDict


def write_records(path: str | Path, examples: Examples, features, tick=lambda n: None) -> int:
    """Writes one ArrayRecord file and returns its number of examples; tick(1) after each."""
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    count = 0

    def records() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for key, example in examples:
            proto = serializer.get_tf_example(features.encode_example(example))
            # Fields would come in an order of their own in every process.
            yield key, proto.SerializeToString(deterministic=True)
            count += 1
            tick(1)

    try:
        ArrayRecordFileAdapter.write_examples(path, records())
    except RuntimeError as error:  # what ArrayRecord raises where the disk takes no more
        raise BadUse(
            f"cannot write {path}: {error}; make room, then run `prepare` again"
        ) from error
    return count


def begin(folder: Path) -> None:
    """Makes a folder of work, or clears one of what a kill left half written."""
    for part in ("files", "facts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.partial"):
        left.unlink()


def conclude(
    folder: Path, tasks: list[Task], directory: Path, write_info: Callable[[Path], None]
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


def finish(task: Task, tick: Callable[[int], None] = lambda n: None) -> None:
    """Writes the file of a task unless it is finished. Any number of processes may do so at once.

    tick(n) says that n more examples are done.
    """
    facts = read_facts(task.folder, task.name)
    if facts and _digest(task.folder / "files" / task.name) == facts["sha256"]:
        tick(facts["examples"])
        return
    partial = task.folder / f"{task.name}.{uuid.uuid4().hex}.partial"
    try:
        count = write_records(partial, task.examples(), task.features, tick)
        facts = {"examples": count, "bytes": partial.stat().st_size, "sha256": _digest(partial)}
        _place(partial, task.folder / "files" / task.name)
        partial.write_text(json.dumps(facts))
        _place(partial, task.folder / "facts" / f"{task.name}.json")
    finally:
        partial.unlink(missing_ok=True)


def read_facts(folder: Path, name: str) -> dict | None:
    """{"examples", "bytes", "sha256"} of a file; None if it is not finished.

    Only its size is compared, not its content.
    """
    try:
        facts = json.loads((folder / "facts" / f"{name}.json").read_text())
        same = facts["bytes"] == (folder / "files" / name).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return facts if same else None


def finish_all(tasks: list[Task], processes: int, progress: Callable[[int], None]) -> None:
    """Finishes all tasks in `processes` processes, one a file; progress(examples done).

    What one raises ends the others; what they have finished stays. Raises
    BrokenProcessPool if a process is ended from outside.
    """
    if min(processes, len(tasks)) < 2:
        done = 0

        def tick(examples: int) -> None:
            nonlocal done
            done += examples
            progress(done)

        for task in tasks:
            finish(task, tick)
        return
    context = multiprocessing.get_context("spawn")  # a copy of a process with threads may hang
    done, stop = context.Value("q"), context.RawValue("b")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), context, _start, (done, stop))
    try:
        _follow([pool.submit(_finish_there, task) for task in tasks], done, progress)
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _follow(futures: list[Future], done, progress: Callable[[int], None]) -> None:
    waiting = set(futures)
    while waiting:
        ended, waiting = concurrent.futures.wait(
            waiting, POLL, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in ended:
            future.result()  # raises what was raised there
        # Without its lock, which a process may have been killed with.
        progress(done.get_obj().value)


_there: dict = {}  # of a process of the pool: what it shares with the others


def _start(done, stop) -> None:
    # A Ctrl-C reaches every process; when to stop is for the first of them to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _there.update(done=done, stop=stop)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _finish_there(task: Task) -> None:
    def tick(examples: int) -> None:
        with _there["done"].get_lock():
            _there["done"].value += examples
        if _there["stop"].value:
            raise concurrent.futures.CancelledError

    finish(task, tick)


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
