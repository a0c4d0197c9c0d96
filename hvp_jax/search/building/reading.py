"""Decodes the videos of a collection in threads, ahead of the model."""

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from data.errors import DataError
from data.records import Segment
from data.storage.path import is_bucket
from data.video.decode import timeline_of
from data.video.file_faults import describe, fault_of_file, reason_of_content
from data.video.local import local_video
from hvp_jax.search.building import collection, stretches
from hvp_jax.search.building.collection import Video

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass
class Opened:
    """A video whose stretches are known; or the reason why it cannot be read."""

    video: Video
    duration: float = 0.0  # seconds
    captions: tuple[str, ...] = ()
    segments: Sequence[Segment] = (Segment(""),)  # of the local file
    copy: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    reason: str = ""


class Read(NamedTuple):
    """The frames of a stretch, uint8 [n, s, s, 3]; None if the video cannot be read."""

    opened: Opened
    segment: Segment
    frames: np.ndarray | None
    is_last: bool  # of its video


def read_all(
    videos: Sequence[Video],
    read_frames: Callable[[Segment], np.ndarray],
    segment_seconds: float,
    *,
    threads: int,
    ahead: int,
) -> Iterator[Read]:
    """The stretches of all videos, in order; about `ahead` of them are read ahead."""

    def open_video(video: Video) -> Opened:
        opened = Opened(video)
        with _noting_faults(opened):
            local = opened.copy.enter_context(local_video(video.path))
            if not is_bucket(video.path):  # opening a pipe would wait for ever
                opened.reason = fault_of_file(local)[0]
            if opened.reason:
                return opened
            opened.duration = timeline_of(local).end
            opened.segments = stretches.cut(local, opened.duration, segment_seconds)
            opened.captions = collection.captions_of(video)
        return opened

    def read(stretch: tuple[Opened, Segment, bool]) -> Read:
        opened, segment, is_last = stretch
        frames = None
        if not opened.reason:
            with _noting_faults(opened):
                frames = read_frames(segment)
        return Read(opened, segment, frames, is_last)

    def stretches_of(opened: Opened) -> Iterator[tuple[Opened, Segment, bool]]:
        for segment in opened.segments:
            yield opened, segment, segment is opened.segments[-1]

    pool = ThreadPoolExecutor(threads)
    try:
        all_opened = _ahead(pool, open_video, videos, threads)
        all_stretches = itertools.chain.from_iterable(map(stretches_of, all_opened))
        for done in _ahead(pool, read, all_stretches, ahead):
            if done.is_last:
                done.opened.copy.close()
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    count: int,
) -> Iterator[Result]:
    """`work(item)` of each item in order, with `count` of them in the threads at a time."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _noting_faults(opened: Opened) -> Iterator[None]:
    """Turns what is wrong with a file into the reason why its video is skipped."""
    try:
        yield
    except DataError as error:
        opened.reason = _reason(opened, str(error))
    except OSError as error:
        opened.reason = describe(error)


def _reason(opened: Opened, message: str) -> str:
    """What a message says of the file, without its path and without advice about captions."""
    local = opened.segments[0].path or opened.video.path
    if not is_bucket(local):
        with contextlib.suppress(OSError):
            if reason := reason_of_content(local):
                return reason
    for path in (local, opened.video.path):
        message = message.removeprefix(f"{path}: ")
    return message.partition(";")[0]
