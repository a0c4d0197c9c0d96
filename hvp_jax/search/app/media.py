"""The videos of an index for a browser: the file itself, a still and a moving preview of a clip.

Only clips of the index are served, and only if their file is below the indexed folder.
"""

import contextlib
import functools
import io
import mimetypes
import threading

import numpy as np
from PIL import Image

from data.errors import DataError
from data.records import Segment
from data.storage import files as storage
from data.storage import listing
from data.storage.path import PathLike, is_bucket, is_inside
from data.video import decode
from data.video.render import render_whole
from hvp_jax.search.app.interface import Searchable

POSTER_SIDE, PREVIEW_SIDE = 480, 320  # pixels of the longer side
PREVIEW_FRAMES = 40
SLOWEST, FASTEST = 400, 40  # milliseconds for which a preview shows a frame
QUALITY = 80  # of WebP
KEPT_COPIES = 16  # of files in a bucket
# What a browser would show as a page or run is never called so.
OTHER_TYPE = "application/octet-stream"


class Media:
    """Finds the file of a clip and makes its pictures. Its methods may be called in any thread."""

    def __init__(self, index: Searchable, root: PathLike):
        self._index, self._root = index, root
        # The path in a bucket -> that of the copy, and what removes it; the last used is the last.
        self._copies: dict[str, tuple[str, contextlib.ExitStack]] = {}
        self._lock = threading.Lock()

    def segment(self, clip_id: str) -> Segment:
        """A clip of the index. Raises an error of the user unless its file may be served."""
        segment = self._index.segment(clip_id)
        if not is_inside(segment.path, self._root):
            raise DataError(
                f"{clip_id}: {segment.path} is a link to a file outside the indexed folder, "
                f"{self._root}, and is not served; index the folder it is in"
            )
        if not listing.is_file(segment.path):
            raise DataError(f"{clip_id}: {segment.path} is gone; run `index` again")
        return segment

    def file(self, clip_id: str) -> tuple[str, str]:
        """The path of a clip's whole file on this machine's disks, and its media type."""
        path = str(self.segment(clip_id).path)
        kind = mimetypes.guess_type(path)[0] or OTHER_TYPE
        is_media = kind.startswith(("video/", "audio/")) or kind == "image/gif"
        return self._on_disk(path), kind if is_media else OTHER_TYPE

    def poster(self, clip_id: str) -> bytes:
        """The frame in the middle of a clip, as WebP."""
        (image, *_) = self._images(clip_id, POSTER_SIDE, 1)
        return _webp([image])

    def preview(self, clip_id: str) -> bytes:
        """A clip as an animated WebP, faster than it is if it is long."""
        images = self._images(clip_id, PREVIEW_SIDE, PREVIEW_FRAMES)
        segment = self.segment(clip_id)
        seconds = _length(self._on_disk(str(segment.path)), segment)
        pace = round(1000 * seconds / len(images))
        return _webp(images, min(max(pace, FASTEST), SLOWEST))

    def close(self) -> None:
        """Removes the copies of files in a bucket."""
        with self._lock:
            for _, copy in self._copies.values():
                copy.close()
            self._copies.clear()

    def _images(self, clip_id: str, side: int, count: int) -> list[np.ndarray]:
        path, start, end = self.segment(clip_id)
        local = self._on_disk(str(path))
        render = functools.partial(render_whole, side=side)
        try:
            return decode.read_images(local, render, count, start=start, end=end, choice=_spread)
        except DataError as error:
            raise DataError(str(error).replace(local, str(path))) from None

    def _on_disk(self, path: str) -> str:
        """The file itself; of one in a bucket a copy, which is kept for the next requests."""
        if not is_bucket(path):
            return path
        with self._lock:
            if path in self._copies:
                self._copies[path] = self._copies.pop(path)
            else:
                copy = contextlib.ExitStack()
                self._copies[path] = copy.enter_context(storage.local_copy(path)), copy
                if len(self._copies) > KEPT_COPIES:
                    self._copies.pop(next(iter(self._copies)))[1].close()
            return self._copies[path][0]


def _spread(first: int, last: int, step: int, max_frames: int) -> list[int]:
    """At most `max_frames` frames, each from the middle of its part of the stretch."""
    del step
    count = min(max_frames, last - first + 1)
    return [first + (2 * i + 1) * (last - first + 1) // (2 * count) for i in range(count)]


def _length(path: str, segment: Segment) -> float:
    """Seconds that a clip takes."""
    end = decode.timeline_of(path).end
    return max(min(segment.end or end, end) - (segment.start or 0), 0)


def _webp(images: list[np.ndarray], milliseconds: int = 0) -> bytes:
    """One image, or an animation of several, in the size of the first."""
    height, width = images[0].shape[:2]
    pictures = [Image.fromarray(image).resize((width, height)) for image in images]
    file = io.BytesIO()
    pictures[0].save(
        file,
        "webp",
        quality=QUALITY,
        method=2,  # larger files, in less time
        save_all=len(pictures) > 1,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
    )
    return file.getvalue()
