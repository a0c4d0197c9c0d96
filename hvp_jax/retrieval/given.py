"""The texts and videos that a caller gives: what they are, and what is wrong with them."""

import os
from collections.abc import Sequence

from data import tokenizer
from data.errors import UsageError
from data.paths import check_path
from data.records import Segment
from data.storage.path import PathLike

Video = PathLike | Segment | tuple


def segment_of(video: Video) -> Segment:
    """A video, or a stretch of one, that is given by its path or as (path, start, end)."""
    if isinstance(video, tuple):
        return Segment(*video)
    return Segment(check_path("video", os.fspath(video), "file"))


def tokens_of(text: str) -> list[int]:
    """The tokens of a text. Raises UsageError if there are none, or if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the text {shown(text)} is not UTF-8; write it again") from None
    tokens = tokenizer.encode(text)
    if not tokens:
        raise UsageError(f"the text {shown(text)} is empty; describe what a video shows")
    return tokens


def require_some(values: Sequence, what: str) -> None:
    """Raises UsageError if there are no values, TypeError if one is given instead of several."""
    if isinstance(values, str | os.PathLike):
        raise TypeError(f"{what} must be a sequence, not {values!r} alone")
    if not len(values):
        raise UsageError(f"there are no {what}; give at least one")


def shown(text: str) -> str:
    """The beginning of a text, for a message."""
    return ascii(text if len(text) <= 40 else f"{text[:39]}…")
