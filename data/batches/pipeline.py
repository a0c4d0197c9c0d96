"""The Grain pipeline: clips and captions -> batches, for any number of workers and hosts.

All transforms but the last work on indices, so a batch is a pure function of its index.
Hence batches do not depend on the number of threads or workers, and the batches of all hosts,
concatenated in their order, are those of a single host. Only the saved state of a Grain
iterator depends on the number of workers.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker

import grain
import numpy as np
from jaxtyping import Int

from data.batches import frame_sources
from data.batches.augment import Augment
from data.batches.batch import Batch, BatchOfClips, TrainBatch, VideoBatch
from data.batches.frame_sources import FrameSource, RandomFrames
from data.batches.pairs import Pairs, require_batch
from data.batches.worker_batches import with_workers
from data.errors import UsageError
from data.records import Clip
from data.tokenizer import tokenize

# The clips of a batch are read by a pool of threads, and Grain prefetches two batches. So memory
# does not grow with the number of cores, and the first batch is not delayed.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadVideos:
    """Indices of clips -> a batch of `batch_size` rows, padded at the end if there are fewer clips.

    For `augment` and a source of random frames, the clips are the examples `first`, `first` + 1,
    ... of the training stream.
    """

    source: FrameSource | RandomFrames
    clip_ids: Sequence[str]
    num_frames: int
    batch_size: int
    augment: Augment | None = None

    def __call__(self, clips: Int[np.ndarray, " n"], first: int = 0) -> VideoBatch:
        size = self.source.size
        video = np.zeros((self.batch_size, self.num_frames, size, size, 3), np.uint8)
        mask = np.zeros((self.batch_size, self.num_frames), bool)

        def read(row: int) -> None:
            clip_id, position = self.clip_ids[clips[row]], first + row
            if isinstance(self.source, RandomFrames):
                frames = self.source.at(clip_id, position)  # [n, S, S, 3]
            else:
                frames = self.source[clip_id]
            if self.augment:
                frames = self.augment(frames, position)
            video[row, : len(frames)] = frames
            mask[row, : len(frames)] = True

        with ThreadPoolExecutor(frame_sources.num_threads(self.source)) as pool:
            for _ in pool.map(read, range(len(clips))):
                pass  # raises what `read` raised
        return VideoBatch(video, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadPairs:
    """Indices of an epoch's examples -> a batch; `index` is the number of this host's batch."""

    videos: ReadVideos
    pairs: Pairs
    max_words: int
    epoch_batches: int  # of this host
    host_index: int
    host_count: int
    with_clip_ids: bool  # batches are `BatchOfClips`

    def __call__(self, index: int, examples: Int[np.ndarray, " b"]) -> TrainBatch:
        clips, captions = self.pairs.of_epoch(index // self.epoch_batches, examples)
        ids, mask = tokenize(captions, self.max_words)
        # Position of the batch's first example in the training stream over all hosts and epochs.
        first = (index * self.host_count + self.host_index) * len(examples)
        videos = self.videos(clips, first)
        if self.with_clip_ids:
            return BatchOfClips(ids, mask, *videos, clips.astype(np.int32))
        return Batch(ids, mask, *videos)


def numbered_batches(
    clips: Sequence[Clip],
    source: FrameSource | RandomFrames,
    num_frames: int,
    max_words: int,
    *,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
    augment: Augment | None = None,
    sampling: str = "pairs",
    with_clip_ids: bool = False,
) -> grain.MapDataset[TrainBatch]:
    """An infinite data set of training batches of (clip, caption) pairs, shuffled every epoch.

    Item i is computed when it is accessed. `batch_size` is that of one host; clips are padded
    to `num_frames` and captions to `max_words`. An epoch contains every example once, except for
    a remainder smaller than the batch of all hosts, which differs between epochs. Examples are
    pairs, or with the `sampling` "videos" clips, with one of their captions (`pairs.py`).

    `augment` depends on the seed and the position of the example in the stream of all hosts
    and epochs, so an example is augmented differently in every epoch.

    Two captions of one clip can be in the same batch, where the loss treats each as a
    negative of the other, as the original does, unless `loss.same_video` says otherwise; that
    needs batches `with_clip_ids`.

    Raises DataError if the examples do not fill a batch, and for an item if one of its clips
    cannot be read; UsageError if the seed is out of range.
    """
    pairs = Pairs.of_clips(clips, sampling, seed)
    global_batch = batch_size * host_count
    require_batch(clips, sampling, global_batch)
    epoch_batches = len(pairs) // global_batch
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    dataset = grain.MapDataset.range(len(pairs)).seed(seed).shuffle()
    dataset = dataset[: epoch_batches * global_batch].batch(batch_size)
    dataset = dataset[host_index::host_count].repeat()
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
            pairs=pairs,
            max_words=max_words,
            epoch_batches=epoch_batches,
            host_index=host_index,
            host_count=host_count,
            with_clip_ids=with_clip_ids,
        )
    )


def train_batches(
    numbered: grain.MapDataset[TrainBatch], workers: int = 0
) -> grain.DatasetIterator[TrainBatch]:
    """Iterates over `numbered_batches` in order, with prefetching.

    Batches are read by `workers` processes, or by threads of this process if 0. `get_state` and
    `set_state` of the iterator are exact to the batch; call close() at the end if there are
    workers. Raises what computing a batch raises, and DataError if a worker dies.
    """
    dataset = numbered.to_iter_dataset(READ_AHEAD)
    return with_workers(dataset, workers) if workers else iter(dataset)


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


def uninterrupted(batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
    """The same batches; the first one, which starts the workers, with `interrupts_held`."""
    with interrupts_held():
        first = next(batches)
    yield first
    yield from batches
