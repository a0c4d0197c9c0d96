"""Grain: clips and captions -> batches, the same whatever the workers and hosts.

Everything up to the last step is indices: a batch is a pure function of its number.
So the batches do not depend on the number of threads or workers, and the batches of
all hosts, put together in their order, are those of a single host. What Grain saves
as the state of an iterator does depend on the number of workers.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from data.augment import Augment
from data.pictures import Source, threads_of
from data.records import Clip
from data.tokenizer import tokenize
from hvp_jax.errors import BadData, BadUse

Batch = dict[str, np.ndarray]

# Clips of one batch are read by a pool of threads; Grain then keeps two batches ahead.
# So memory does not grow with the number of cores, and the first batch is not late.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)


@dataclasses.dataclass(frozen=True)
class ReadVideos:
    """Numbers of clips [n] -> `video` and `video_mask` of `rows` rows, the last ones padding.

    Where there is an `augment`, the clips are examples `first`, `first` + 1, ... of training.
    """

    source: Source
    clip_ids: Sequence[str]
    frames: int
    rows: int
    threads: int
    augment: Augment | None = None

    def __call__(self, numbers: np.ndarray, first: int = 0) -> Batch:
        size = self.source.size
        video = np.zeros((self.rows, self.frames, size, size, 3), np.uint8)
        mask = np.zeros((self.rows, self.frames), bool)

        def read(row: int) -> None:
            pictures = self.source[self.clip_ids[numbers[row]]]  # [n, S, S, 3]
            if self.augment:
                pictures = self.augment(pictures, first + row)
            video[row, : len(pictures)] = pictures
            mask[row, : len(pictures)] = True

        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(read, range(len(numbers))):
                pass  # raises what reading raised
        return {"video": video, "video_mask": mask}


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
        return self.videos(self.clips[numbers], first) | {"text_ids": ids, "text_mask": mask}


def train_batches(
    clips: Sequence[Clip],
    source: Source,
    frames: int,
    words: int,
    batch_size: int,
    seed: int,
    workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augment | None = None,
) -> grain.DatasetIterator[Batch]:
    """Endless batches of (clip, caption) pairs for training, each epoch in its own order.

    Batches are dicts of `video` uint8 [B, frames, S, S, 3], `video_mask` bool
    [B, frames], `text_ids` int32 [B, words], `text_mask` bool [B, words], where B =
    `batch_size` is that of one host. An epoch is every pair once, less a remainder
    smaller than the batch of all hosts, which differs from epoch to epoch. `workers`
    processes read, or threads of this process if 0. The iterator has `get_state` and
    `set_state`, exact to the batch; close() it at the end if there are workers.

    `augment` changes pixels, by the seed and by the number of the example, counted over
    all hosts and epochs: another draw whenever an example comes again.

    Two captions of one clip can meet in a batch, where the loss takes each as the
    other's negative. The original does nothing about it, nor do we.

    Raises BadData if an epoch holds no batch, and while iterating if a clip cannot be
    read; BadUse if the seed is not one.
    """
    dataset = numbered_batches(
        clips, source, frames, words, batch_size, seed, workers, host_index, host_count, augment
    ).to_iter_dataset(READ_AHEAD)
    if workers:
        # Grain reads absl flags when it starts processes; nobody parses them in tests.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, _ignore_interrupts)
    return iter(dataset)


def numbered_batches(
    clips: Sequence[Clip],
    source: Source,
    frames: int,
    words: int,
    batch_size: int,
    seed: int,
    workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augment | None = None,
) -> grain.MapDataset[Batch]:
    """The batches of `train_batches` by number: item i is made when it is asked for."""
    numbers = [i for i, clip in enumerate(clips) for _ in clip.captions]
    captions = [caption for clip in clips for caption in clip.captions]
    together = batch_size * host_count
    whole = len(captions) // together * together
    if not whole:
        raise BadData(
            f"{len(captions)} pairs of clip and caption in the training split do not fill a "
            f"batch of {together}: add clips or lower train.batch_size"
        )
    if not 0 <= seed < 2**32:
        raise BadUse(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    dataset = grain.MapDataset.range(len(captions)).seed(seed).shuffle()
    dataset = dataset[:whole].batch(batch_size)[host_index::host_count].repeat()
    clip_ids = [clip.clip_id for clip in clips]
    videos = ReadVideos(source, clip_ids, frames, batch_size, threads_of(workers), augment)
    return dataset.map_with_index(
        ReadPairs(videos, np.asarray(numbers), captions, words, host_index, host_count)
    )


def _ignore_interrupts(worker: int, workers: int) -> None:
    """A Ctrl-C reaches workers too; when to stop is for the process to say that they serve."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


def eval_texts(clips: Sequence[Clip], words: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Every caption once, clip by clip: `text_ids`, `text_mask` [batch_size, words].

    The number with each batch says how many rows are valid; those after them, in the
    last batch, are padding with nothing but False in the mask.
    """
    captions = [caption for clip in clips for caption in clip.captions]
    for first in range(0, len(captions), batch_size):
        ids, mask = tokenize(captions[first : first + batch_size], words)
        valid = len(ids)
        padding = ((0, batch_size - valid), (0, 0))
        yield {"text_ids": np.pad(ids, padding), "text_mask": np.pad(mask, padding)}, valid


def eval_videos(
    clips: Sequence[Clip], source: Source, frames: int, batch_size: int
) -> Iterator[tuple[Batch, int]]:
    """Every clip once, in order: `video` and `video_mask` as in `train_batches`.

    The last batch is padded as that of `eval_texts`. Raises BadData if a clip cannot
    be read.
    """
    clip_ids = [clip.clip_id for clip in clips]
    read = ReadVideos(source, clip_ids, frames, batch_size, threads_of(workers=0))
    dataset = grain.MapDataset.range(len(clips)).batch(batch_size).map(read)
    for i, batch in enumerate(dataset.to_iter_dataset(READ_AHEAD)):
        yield batch, min(batch_size, len(clips) - i * batch_size)
