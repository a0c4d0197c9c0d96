"""From videos to the clips of an index: features in chunks of whole videos."""

import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from data.batches.frame_sources import num_threads
from hvp_jax.models.similarity import VideoFeatures
from hvp_jax.retrieval.batching import concatenated
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search.building import reading, stretches
from hvp_jax.search.building.collection import Video
from hvp_jax.search.building.reading import Read
from hvp_jax.search.table import Row

CHUNK = 256  # clips that are written at a time, and lost at most when the process is killed


class Chunk(NamedTuple):
    """All clips of some videos."""

    rows: list[Row]
    features: VideoFeatures
    videos: list[Video]


def encode(
    retriever: Retriever,
    videos: Sequence[Video],
    segment_seconds: float,
    *,
    skipped: dict[str, str],
    waits: bool,
) -> Iterator[Chunk]:
    """The clips of all videos; `skipped` gets the reason of each that cannot be read.

    `waits`: reading waits for the answers of a bucket.
    """
    threads = num_threads(types.SimpleNamespace(waits=waits))
    read = reading.read_all(
        videos,
        retriever.read_frames,
        segment_seconds,
        threads=threads,
        ahead=threads + retriever.batch_size,
    )
    chunk = _Chunk(retriever)
    with tqdm(total=len(videos), desc="index", unit="clip", disable=not videos) as bar:
        for done in read:
            if done.is_last:
                bar.total += len(done.opened.segments) - 1
            bar.update()
            chunk.add(done)
            if done.is_last and len(chunk.rows) >= CHUNK:
                yield from chunk.finish(skipped)
                chunk = _Chunk(retriever)
        yield from chunk.finish(skipped)


class _Chunk:
    """A chunk that grows, stretch by stretch."""

    def __init__(self, retriever: Retriever):
        self.rows: list[Row] = []
        self._retriever = retriever
        self._opened: list[reading.Opened] = []
        self._waiting: list[np.ndarray] = []  # frames of the last rows
        self._parts: list[VideoFeatures] = []

    def add(self, done: Read) -> None:
        opened, segment = done.opened, done.segment
        if done.is_last:
            self._opened.append(opened)
        if done.frames is None:
            return
        name = opened.video.name
        self.rows.append(
            Row(
                id=stretches.clip_id(name, segment),
                path=name,
                start=segment.start,
                end=segment.end,
                duration=opened.duration,
                version=opened.video.version,
                captions="\n".join(opened.captions),
            )
        )
        self._waiting.append(done.frames)
        if len(self._waiting) == self._retriever.batch_size:
            self._encode()

    def _encode(self) -> None:
        if self._waiting:
            self._parts.append(self._retriever.encode_frames(self._waiting))
        self._waiting = []

    def finish(self, skipped: dict[str, str]) -> Iterator[Chunk]:
        """The chunk without the videos that cannot be read, if there is something in it."""
        self._encode()
        bad = {opened.video.name: opened.reason for opened in self._opened if opened.reason}
        skipped |= bad
        kept = [i for i, row in enumerate(self.rows) if row.path not in bad]
        if kept:
            features = jax.tree.map(lambda x: x[kept], concatenated(self._parts))
            good = [opened.video for opened in self._opened if not opened.reason]
            yield Chunk([self.rows[i] for i in kept], features, good)
