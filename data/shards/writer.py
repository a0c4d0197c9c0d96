"""Shards written several at a time, each of them atomically (`staging.py`)."""

import concurrent.futures
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter

from data.errors import UsageError
from data.records import Broken
from data.shards import staging
from data.shards.staging import Staging
from data.storage.path import Path
from data.worker_pool import POLL, IsolatedProcess

SYSTEM_CALL_FAILED = re.compile(r"\b\w+\(\) failed: ([^;]+)")  # ArrayRecord's message
# Of ENOSPC, EDQUOT and EFBIG.
NO_SPACE = ("No space left", "quota exceeded", "File too large")

DecodeEach = Callable[[Iterable[Any]], Iterator[Any]]  # `IsolatedProcess.each`


class ShardTask(NamedTuple):
    """One shard to write; can be pickled."""

    staging: Staging
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


def write_shard(
    task: ShardTask, decode_each: DecodeEach, report_done: Callable[[int], None] = lambda n: None
) -> list[Broken]:
    """Writes a shard unless it is finished; returns its broken clips, with which it is not written.

    Several processes may write shards at the same time. report_done(n) is called when n more
    examples are done.
    """
    stats = staging.read_stats(task.staging, task.name)
    if stats and staging.is_intact(task.staging, task.name, stats):
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

    with staging.partial_file(task.staging, task.name) as partial:
        count = write_records(partial, good_examples(), task.features)
        if not broken:
            staging.finish(task.staging, task.name, partial, count)
    return broken


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
