"""The hits of a search as text, and as a contact sheet."""

import logging
from collections.abc import Sequence

import numpy as np

from data.errors import DataError
from data.storage import listing
from data.storage.path import PathLike
from hvp_jax.evaluation import contact_sheet
from hvp_jax.search.query import Hit, Index

NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)

log = logging.getLogger(__name__)


def describe(query: str, hits: Sequence[Hit]) -> str:
    """A query and a line for each hit: its rank, score, path and stretch."""
    if not hits:
        return f"{query}\n  no clip fits"
    width = max(len(hit.path) for hit in hits)
    lines = [
        f"  {rank:3}  {hit.score:8.4f}  {hit.path.ljust(width)}  {_stretch(hit)}".rstrip()
        for rank, hit in enumerate(hits, 1)
    ]
    return "\n".join([query, *lines])


def gone(index: Index, found: Sequence[Sequence[Hit]]) -> list[str]:
    """The paths of hits whose files are not there any more."""
    paths = dict.fromkeys(index.path_of(hit.path) for hits in found for hit in hits)
    return [path for path in paths if not listing.is_file(path)]


def draw_sheet(
    png_path: PathLike, index: Index, queries: Sequence[str], found: Sequence[Sequence[Hit]]
) -> None:
    """Draws the best hits of each query as film strips; one whose file is gone stays blank.

    Raises UsageError if the file cannot be written.
    """
    rows = []
    for query, hits in zip(queries, found, strict=True):
        strips = []
        for hit in hits[: contact_sheet.NUM_HITS]:
            try:
                frames = index.retriever.read_frames(index.segment(hit.id))
            except DataError as error:
                log.warning("the contact sheet has no frames of a clip: %s", error)
                frames = NO_FRAMES
            strips.append(contact_sheet.Hit(_label(hit), frames, hit.score, False))
        rows.append(contact_sheet.Query(query, None, strips))
    contact_sheet.draw_contact_sheet(png_path, rows)


def _label(hit: Hit) -> str:
    stretch = _stretch(hit)
    return f"{hit.path} {stretch}" if stretch else hit.path


def _stretch(hit: Hit) -> str:
    """Start and end as minutes and seconds; "" for a whole video."""
    if hit.start is None or hit.end is None:
        return ""
    return f"{_clock(hit.start)} to {_clock(hit.end)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
