"""The contact sheet: queries and their best-scoring clips, as film strips."""

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from data.storage import files as storage
from data.storage.path import PathLike

INK, GREY, FAINT, PAPER = "#1c2330", "#737d8c", "#e3e7ed", "#fcfcfd"
ORANGE, GREEN = "#d9822b", "#15995b"

NUM_HITS, STRIP_FRAMES = 5, 4
# Lengths in layout pixels; the image has two pixels for each.
MARGIN, QUERY_WIDTH, FRAME_SIZE = 40, 250, 64
FRAME_GAP, BORDER, STRIP_GAP = 2, 4, 18  # between frames, around a strip, between strips
STRIP_WIDTH = STRIP_FRAMES * FRAME_SIZE + (STRIP_FRAMES - 1) * FRAME_GAP + 2 * BORDER
HEADER_HEIGHT, ROW_PADDING = 104, 16  # above the first row, above the strips of a row
ROW_HEIGHT = ROW_PADDING + FRAME_SIZE + 2 * BORDER + 36
BLANK = np.full((1, 1, 3), 242, np.uint8)  # in place of missing frames
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


class Hit(NamedTuple):
    """A retrieved clip with any number of frames."""

    clip_id: str
    frames: UInt8[np.ndarray, "n height width 3"]
    score: float
    is_correct: bool


class Query(NamedTuple):
    """A caption, the rank of its own clip, and the best-scoring clips in order.

    Without a rank no clip is known to be the right one.
    """

    text: str
    rank: float | None
    hits: Sequence[Hit]


def draw_contact_sheet(png_path: PathLike, queries: Sequence[Query | tuple]) -> None:
    """Draws each query with its five best clips as film strips and marks the correct clip.

    Queries and hits may be plain tuples. Characters missing from the font become boxes;
    frames are cropped to squares.
    """
    rows = [
        Query(text, rank, [Hit(*hit) for hit in hits[:NUM_HITS]]) for text, rank, hits in queries
    ]
    width = 2 * MARGIN + QUERY_WIDTH + NUM_HITS * (STRIP_WIDTH + STRIP_GAP)
    height = HEADER_HEIGHT + ROW_HEIGHT * len(rows) + MARGIN // 2
    figure = Figure(figsize=(width / 100, height / 100), dpi=200, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.axis("off")
        write(axes, MARGIN, 44, "Text to video", size=15, weight="bold")
        write(axes, MARGIN, 68, _note(rows), size=9, color=GREY)
        for position, name in enumerate(ORDINALS):
            write(axes, _strip_left(position), HEADER_HEIGHT - 14, name, size=8, color=GREY)
        for row, query in enumerate(rows):
            top = HEADER_HEIGHT + row * ROW_HEIGHT
            axes.plot([MARGIN, width - MARGIN], [top, top], color=FAINT, lw=0.8)
            _draw_query(axes, top, query)
            for position, hit in enumerate(query.hits):
                _draw_hit(axes, _strip_left(position), top, hit)
        # Two evaluations may run in a workdir: a file is complete, whoever wrote it.
        with storage.open_atomically(png_path, "wb") as file:
            figure.savefig(file, format="png", facecolor=PAPER)


def _note(rows: Sequence[Query]) -> str:
    known = [query for query in rows if query.rank is not None]
    if not known:
        return f"The best {NUM_HITS} clips of each query."
    listed = sum(any(hit.is_correct for hit in query.hits) for query in known)
    return f"The right clip is among the best {NUM_HITS} for {listed} of {len(known)} queries."


def _strip_left(position: int) -> int:
    return MARGIN + QUERY_WIDTH + STRIP_GAP + position * (STRIP_WIDTH + STRIP_GAP)


def _label_y(top: int) -> int:
    """The baseline of the labels under the strips of the row that begins at `top`."""
    return top + ROW_PADDING + FRAME_SIZE + 2 * BORDER + 16


def _draw_query(axes: Axes, top: int, query: Query) -> None:
    text = drawable(query.text) or "(no text)"
    lines = textwrap.wrap(text, 29, max_lines=3, placeholder=" …")
    # Behind the strips, in case a wide line reaches them.
    style: dict[str, Any] = {"va": "top", "linespacing": 1.35, "zorder": 0}
    write(axes, MARGIN, top + ROW_PADDING, "\n".join(lines), size=10, **style)
    if query.rank is None:
        return
    listed = any(hit.is_correct for hit in query.hits)
    label = f"rank {query.rank:g}" if listed else f"right clip at rank {query.rank:g}"
    color = GREEN if listed else ORANGE
    write(axes, MARGIN, _label_y(top), label, size=8, color=color, weight="bold")


def _draw_hit(axes: Axes, left: int, row_top: int, hit: Hit) -> None:
    top, label_y = row_top + ROW_PADDING, _label_y(row_top)
    box = FancyBboxPatch(
        (left, top),
        STRIP_WIDTH,
        FRAME_SIZE + 2 * BORDER,
        boxstyle="round,pad=0,rounding_size=6",
        fc=GREEN if hit.is_correct else FAINT,
        ec="none",
    )
    axes.add_patch(box)
    frames = _select_frames(hit.frames)
    for position, frame in enumerate(frames + [BLANK] * (STRIP_FRAMES - len(frames))):
        x, y = left + BORDER + position * (FRAME_SIZE + FRAME_GAP), top + BORDER
        axes.imshow(
            frame,
            extent=(x, x + FRAME_SIZE, y + FRAME_SIZE, y),
            interpolation="lanczos",
            aspect="auto",
            zorder=2,
        )
    name = drawable(hit.clip_id)
    name = name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"
    weight, color = ("bold", GREEN) if hit.is_correct else ("normal", GREY)
    write(axes, left + BORDER, label_y, name, size=7.5, color=color, weight=weight)
    right, score = left + STRIP_WIDTH - BORDER, f"{hit.score:.3f}"
    write(axes, right, label_y, score, size=7.5, color=color, ha="right")
    if hit.is_correct:
        x, y = left + STRIP_WIDTH - 3, top + 3
        axes.add_patch(Circle((x, y), 10, fc=GREEN, ec=PAPER, lw=1.6, zorder=4))
        axes.plot([x - 4.5, x - 1.3, x + 4.5], [y, y + 3.6, y - 3.4], color=PAPER, lw=1.7, zorder=5)


def _select_frames(frames: np.ndarray) -> list[np.ndarray]:
    """At most STRIP_FRAMES evenly spaced frames of [n, H, W, 3], cropped to squares."""
    side = min(frames.shape[1:3])
    y, x = ((edge - side) // 2 for edge in frames.shape[1:3])
    count = min(STRIP_FRAMES, len(frames))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return [frames[i, y : y + side, x : x + side] for i in chosen]


def drawable(text: str) -> str:
    """One line of text without control characters or lone surrogates, which cannot be drawn."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def write(
    axes: Axes,
    x: int | float,
    y: int | float,
    text: str,
    *,
    size: int | float,
    color: str = INK,
    **style: Any,
) -> None:
    """Writes text at a place on a figure."""
    # A dollar sign in a caption does not start a formula.
    axes.text(x, y, text, size=size, color=color, parse_math=False, **style)
