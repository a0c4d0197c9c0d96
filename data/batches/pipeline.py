"""Grain: clips and captions -> batches, the same whatever the workers and hosts.

Everything up to the last step is indices: a batch is a pure function of its number.
So the batches do not depend on the number of threads or workers, and the batches of
all hosts, put together in their order, are those of a single host. What Grain saves
as the state of an iterator does depend on the number of workers.
"""

import contextlib
import dataclasses
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from data.batches import frame_sources
from data.batches.augment import Augment
from data.batches.batch import Batch, TextBatch, VideoBatch
from data.batches.frame_sources import FrameSource
from data.errors import DataError, UsageError
from data.records import Clip
from data.tokenizer import tokenize
from data.worker_pool import ending

# Clips of one batch are read by a pool of threads; Grain then keeps two batches ahead.
# So memory does not grow with the number of cores, and the first batch is not late.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
DEATH = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # what Grain says of one


@dataclasses.dataclass(frozen=True)
class ReadVideos:
    """Numbers of clips [n] -> `video` and `video_mask` of `rows` rows, the last ones padding.

    Where there is an `augment`, the clips are examples `first`, `first` + 1, ... of training.
    """

    source: FrameSource
    clip_ids: Sequence[str]
    frames: int
    rows: int
    augment: Augment | None = None

    def __call__(self, numbers: np.ndarray, first: int = 0) -> VideoBatch:
        size = self.source.size
        video = np.zeros((self.rows, self.frames, size, size, 3), np.uint8)
        mask = np.zeros((self.rows, self.frames), bool)

        def read(row: int) -> None:
            shown = self.source[self.clip_ids[numbers[row]]]  # [n, S, S, 3]
            if self.augment:
                shown = self.augment(shown, first + row)
            video[row, : len(shown)] = shown
            mask[row, : len(shown)] = True

        with ThreadPoolExecutor(frame_sources.threads()) as pool:
            for _ in pool.map(read, range(len(numbers))):
                pass  # raises what reading raised
        return VideoBatch(video, mask)


@dataclasses.dataclass(frozen=True)
class ReadPairs:
    """The host's batch `index`, as numbers of pairs [B] -> its videos with one caption each."""

    videos: ReadVideos
    clips: np.ndarray  # [pairs] the number of the clip of each pair
    captions: Sequence[str]  # [pairs]
    words: int
    host_index: int
    host_count: int

    def __call__(self, index: int, numbers: np.ndarray) -> Batch:
        ids, mask = tokenize([self.captions[i] for i in numbers], self.words)
        # The number of the batch's first example in the one stream of all hosts and epochs.
        first = (index * self.host_count + self.host_index) * len(numbers)
        return Batch(ids, mask, *self.videos(self.clips[numbers], first))


def require_batch(pairs: int, batch_size: int) -> None:
    """Raises DataError if the pairs of the training split do not fill a batch."""
    if pairs < batch_size:
        raise DataError(
            f"{pairs} pairs of clip and caption in the training split do not fill a "
            f"batch of {batch_size}: add clips or lower train.batch_size"
        )


def numbered_batches(
    clips: Sequence[Clip],
    source: FrameSource,
    frames: int,
    words: int,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augment | None = None,
) -> grain.MapDataset[Batch]:
    """Endless batches of (clip, caption) pairs for training, each epoch in its own order.

    Item i is made when it is asked for: `video` uint8 [B, frames, S, S, 3], `video_mask`
    bool [B, frames], `text_ids` int32 [B, words], `text_mask` bool [B, words], where B =
    `batch_size` is that of one host. An epoch is every pair once, less a remainder
    smaller than the batch of all hosts, which differs from epoch to epoch.

    `augment` changes pixels, by the seed and by the number of the example, counted over
    all hosts and epochs: another draw whenever an example comes again.

    Two captions of one clip can meet in a batch, where the loss takes each as the
    other's negative. The original does nothing about it, nor do we.

    Raises DataError if an epoch holds no batch, and for an item one of whose clips cannot
    be read; UsageError if the seed is not one.
    """
    numbers = [i for i, clip in enumerate(clips) for _ in clip.captions]
    captions = [caption for clip in clips for caption in clip.captions]
    together = batch_size * host_count
    whole = len(captions) // together * together
    require_batch(len(captions), together)
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    dataset = grain.MapDataset.range(len(captions)).seed(seed).shuffle()
    dataset = dataset[:whole].batch(batch_size)[host_index::host_count].repeat()
    videos = ReadVideos(source, [clip.clip_id for clip in clips], frames, batch_size, augment)
    return dataset.map_with_index(
        ReadPairs(videos, np.asarray(numbers), captions, words, host_index, host_count)
    )


def train_batches(
    numbered: grain.MapDataset[Batch], workers: int = 0
) -> grain.DatasetIterator[Batch]:
    """The batches of `numbered_batches` in their order, read ahead.

    `workers` processes read, or threads of this process if 0. The iterator has `get_state`
    and `set_state`, exact to the batch; close() it at the end if there are workers.
    Iterating raises what making a batch raises, and DataError if a worker dies.
    """
    dataset = numbered.to_iter_dataset(READ_AHEAD)
    if not workers:
        return iter(dataset)
    # Grain reads absl flags when it starts processes; nobody parses them in tests.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers)
    return _Watched(iter(dataset.mp_prefetch(options, _begin_worker)))


class _Watched(grain.DatasetIterator):
    """The batches of worker processes; a worker that dies ends them in one clear line."""

    def __init__(self, batches: grain.DatasetIterator[Batch]):
        super().__init__(batches)
        self._batches = batches

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except RuntimeError as error:
            if not (code := DEATH.search(str(error))):
                raise
            raise DataError(_death(int(code[1]))) from None

    def get_state(self) -> dict:
        return self._batches.get_state()

    def set_state(self, state: dict) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()


def _death(code: int) -> str:
    again = "the same command goes on from the last checkpoint"
    if code == -signal.SIGKILL:
        return (
            "a worker process that reads batches was killed from outside (SIGKILL), perhaps for "
            f"want of memory: {again}; if it happens again, with fewer data.workers"
        )
    return (
        f"a worker process that reads batches died ({ending(code)}): {again}; if it happens "
        "again, `doctor` names files that crash the decoder"
    )


def _begin_worker(worker: int, workers: int) -> None:
    """A Ctrl-C reaches workers too; when to stop is for the process to say that they serve."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    frame_sources.share_cores(workers)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Workers that start within are not ended by a SIGINT before they know to ignore it.

    They start with the first batch, or where a state is set, and inherit that the signal
    is blocked. This process gets it at the latest at the end.
    """
    # The tracker of shared memory would lift the block if it started within.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def uninterrupted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first of them with `interrupts_held`."""
    with interrupts_held():
        first = next(batches)
    yield first
    yield from batches


def eval_texts(
    clips: Sequence[Clip], words: int, batch_size: int
) -> Iterator[tuple[TextBatch, int]]:
    """Every caption once, clip by clip: `text_ids`, `text_mask` [batch_size, words].

    The number with each batch says how many rows are valid; those after them, in the
    last batch, are padding with nothing but False in the mask.
    """
    captions = [caption for clip in clips for caption in clip.captions]
    for first in range(0, len(captions), batch_size):
        ids, mask = tokenize(captions[first : first + batch_size], words)
        valid = len(ids)
        padding = ((0, batch_size - valid), (0, 0))
        yield TextBatch(np.pad(ids, padding), np.pad(mask, padding)), valid


def eval_videos(
    clips: Sequence[Clip], source: FrameSource, frames: int, batch_size: int
) -> Iterator[tuple[VideoBatch, int]]:
    """Every clip once, in order: `video` and `video_mask` as in `numbered_batches`.

    The last batch is padded as that of `eval_texts`. Raises DataError if a clip cannot
    be read.
    """
    clip_ids = [clip.clip_id for clip in clips]
    read = ReadVideos(source, clip_ids, frames, batch_size)
    dataset = grain.MapDataset.range(len(clips)).batch(batch_size).map(read)
    for i, batch in enumerate(dataset.to_iter_dataset(READ_AHEAD)):
        yield batch, min(batch_size, len(clips) - i * batch_size)
