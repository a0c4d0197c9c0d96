"""The Grain pipeline: clips and captions -> batches, for any number of workers and hosts.

All transforms but the last work on indices, so a batch is a pure function of its index.
Hence batches do not depend on the number of threads or workers, and the batches of all hosts,
concatenated in their order, are those of a single host. Only the saved state of a Grain
iterator depends on the number of workers.
"""

import contextlib
import dataclasses
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from data.batches import frame_sources, shared_memory
from data.batches.augment import Augment
from data.batches.batch import Batch, VideoBatch
from data.batches.frame_sources import FrameSource
from data.errors import DataError, UsageError
from data.records import Clip
from data.tokenizer import tokenize
from data.worker_process import ending

# The clips of a batch are read by a pool of threads, and Grain prefetches two batches. So memory
# does not grow with the number of cores, and the first batch is not delayed.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
WORKER_DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # Grain's message


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadVideos:
    """Indices of clips -> a batch of `batch_size` rows, padded at the end if there are fewer clips.

    For `augment`, the clips are the examples `first`, `first` + 1, ... of the training stream.
    """

    source: FrameSource
    clip_ids: Sequence[str]
    num_frames: int
    batch_size: int
    augment: Augment | None = None

    def __call__(self, clips: Int[np.ndarray, " n"], first: int = 0) -> VideoBatch:
        size = self.source.size
        video = np.zeros((self.batch_size, self.num_frames, size, size, 3), np.uint8)
        mask = np.zeros((self.batch_size, self.num_frames), bool)

        def read(row: int) -> None:
            frames = self.source[self.clip_ids[clips[row]]]  # [n, S, S, 3]
            if self.augment:
                frames = self.augment(frames, first + row)
            video[row, : len(frames)] = frames
            mask[row, : len(frames)] = True

        with ThreadPoolExecutor(frame_sources.num_threads()) as pool:
            for _ in pool.map(read, range(len(clips))):
                pass  # raises what `read` raised
        return VideoBatch(video, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadPairs:
    """Indices of (clip, caption) pairs -> a batch; `index` is the number of this host's batch."""

    videos: ReadVideos
    clip_of_pair: Int[np.ndarray, " pairs"]
    captions: Sequence[str]  # [pairs]
    max_words: int
    host_index: int
    host_count: int

    def __call__(self, index: int, pairs: Int[np.ndarray, " b"]) -> Batch:
        ids, mask = tokenize([self.captions[i] for i in pairs], self.max_words)
        # Position of the batch's first example in the training stream over all hosts and epochs.
        first = (index * self.host_count + self.host_index) * len(pairs)
        return Batch(ids, mask, *self.videos(self.clip_of_pair[pairs], first))


def require_batch(pairs: int, batch_size: int) -> None:
    """Raises DataError if the training split has fewer pairs than a batch."""
    if pairs < batch_size:
        raise DataError(
            f"{pairs} pairs of clip and caption in the training split do not fill a "
            f"batch of {batch_size}: add clips or reduce train.batch_size"
        )


def numbered_batches(
    clips: Sequence[Clip],
    source: FrameSource,
    num_frames: int,
    max_words: int,
    *,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augment | None = None,
) -> grain.MapDataset[Batch]:
    """An infinite data set of training batches of (clip, caption) pairs, shuffled every epoch.

    Item i is computed when it is accessed. `batch_size` is that of one host; clips are padded
    to `num_frames` and captions to `max_words`. An epoch contains every pair once, except for
    a remainder smaller than the batch of all hosts, which differs between epochs.

    `augment` depends on the seed and the position of the example in the stream of all hosts
    and epochs, so an example is augmented differently in every epoch.

    Two captions of one clip can be in the same batch, where the loss treats each as a
    negative of the other. The original implementation does the same.

    Raises DataError if the pairs do not fill a batch, and for an item if one of its clips
    cannot be read; UsageError if the seed is out of range.
    """
    clip_of_pair = [i for i, clip in enumerate(clips) for _ in clip.captions]
    captions = [caption for clip in clips for caption in clip.captions]
    global_batch = batch_size * host_count
    per_epoch = len(captions) // global_batch * global_batch
    require_batch(len(captions), global_batch)
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    dataset = grain.MapDataset.range(len(captions)).seed(seed).shuffle()
    dataset = dataset[:per_epoch].batch(batch_size)[host_index::host_count].repeat()
    videos = ReadVideos(
        source=source,
        clip_ids=[clip.clip_id for clip in clips],
        num_frames=num_frames,
        batch_size=batch_size,
        augment=augment,
    )
    return dataset.map_with_index(
        ReadPairs(
            videos=videos,
            clip_of_pair=np.asarray(clip_of_pair),
            captions=captions,
            max_words=max_words,
            host_index=host_index,
            host_count=host_count,
        )
    )


def train_batches(
    numbered: grain.MapDataset[Batch], workers: int = 0
) -> grain.DatasetIterator[Batch]:
    """Iterates over `numbered_batches` in order, with prefetching.

    Batches are read by `workers` processes, or by threads of this process if 0. `get_state` and
    `set_state` of the iterator are exact to the batch; call close() at the end if there are
    workers. Raises what computing a batch raises, and DataError if a worker dies.
    """
    dataset = numbered.to_iter_dataset(READ_AHEAD)
    if not workers:
        return iter(dataset)
    # Grain reads absl flags when it starts processes; they may not have been parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers)
    return _WorkerBatches(iter(dataset.mp_prefetch(options, _init_worker)))


class _WorkerBatches(grain.DatasetIterator):
    """The batches of worker processes; raises DataError if a worker dies."""

    def __init__(self, batches: grain.DatasetIterator[Batch]):
        super().__init__(batches)
        self._batches = batches

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except RuntimeError as error:
            if not (match := WORKER_DIED.search(str(error))):
                raise
            raise DataError(_death_message(int(match[1]))) from None

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        # Grain joins a worker that could not start too; the reason has been raised already.
        with contextlib.suppress(AssertionError):
            self._batches.close()


def _death_message(code: int) -> str:
    resume = "the same command resumes from the last checkpoint"
    if code == -signal.SIGBUS:
        return (
            "a worker process that reads batches died (SIGBUS), which happens when shared memory "
            f"is full: {shared_memory.enlarge()}; {resume}"
        )
    if code == -signal.SIGKILL:
        return (
            "a worker process that reads batches was killed (SIGKILL), possibly because memory "
            f"ran out: {resume}; if it happens again, reduce data.workers"
        )
    return (
        f"a worker process that reads batches died ({ending(code)}): {resume}; if it happens "
        "again, `doctor` finds files that crash the decoder"
    )


def _init_worker(worker: int, workers: int) -> None:
    """Workers ignore Ctrl-C, which they receive too: the parent process decides when to stop."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    frame_sources.share_cores(workers)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Protects workers that start in this context from a SIGINT before they ignore it.

    Workers start with the first batch or with `set_state`, and inherit the blocked signal. This
    process receives a SIGINT from this time when the context ends.
    """
    # The shared-memory tracker would unblock the signal if it started in this context.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def uninterrupted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the first one, which starts the workers, with `interrupts_held`."""
    with interrupts_held():
        first = next(batches)
    yield first
    yield from batches
