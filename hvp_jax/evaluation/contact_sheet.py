"""The contact sheet: queries and the clips that score best for them, as film strips."""

import os
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

INK, GREY, FAINT, PAPER = "#1c2330", "#737d8c", "#e3e7ed", "#fcfcfd"
ORANGE, GREEN = "#d9822b", "#15995b"

# Pixels of a screen; the picture has two of its own to each.
MARGIN, QUERY, FRAME, FRAMES, HITS = 40, 250, 64, 4, 5
SEAM, RIM, GAP = 2, 4, 18  # between frames, around a strip, between strips
STRIP = FRAMES * FRAME + (FRAMES - 1) * SEAM + 2 * RIM
HEAD, PAD = 104, 16  # above the first row, above the strips in a row
ROW = PAD + FRAME + 2 * RIM + 36
BLANK = np.full((1, 1, 3), 242, np.uint8)  # where a clip has fewer frames
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


class Hit(NamedTuple):
    """A retrieved clip; `frames` uint8 [n, H, W, 3], n of any size."""

    clip_id: str
    frames: np.ndarray
    score: float
    is_right: bool


class Query(NamedTuple):
    """A caption, the rank of its own clip, and the clips that score best, best first."""

    text: str
    rank: float
    hits: Sequence[Hit]


def contact_sheet(png_path: str | os.PathLike, rows: Sequence[Query]) -> None:
    """Draws each query with its five best clips as film strips, the right one marked.

    Characters that the font lacks become boxes; frames are cropped to squares.
    """
    rows = [Query(text, rank, [Hit(*hit) for hit in hits[:HITS]]) for text, rank, hits in rows]
    width = 2 * MARGIN + QUERY + HITS * (STRIP + GAP)
    height = HEAD + ROW * len(rows) + MARGIN // 2
    figure = Figure(figsize=(width / 100, height / 100), dpi=200, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.axis("off")
        _write(axes, MARGIN, 44, "Text to video", 15, weight="bold")
        found = sum(any(hit.is_right for hit in row.hits) for row in rows)
        note = f"The right clip is among the best {HITS} for {found} of {len(rows)} queries."
        _write(axes, MARGIN, 68, note, 9, GREY)
        for place, name in enumerate(ORDINALS):
            _write(axes, _strip_left(place), HEAD - 14, name, 8, GREY)
        for number, row in enumerate(rows):
            top = HEAD + number * ROW
            axes.plot([MARGIN, width - MARGIN], [top, top], color=FAINT, lw=0.8)
            _draw_query(axes, top, row)
            for place, hit in enumerate(row.hits):
                _draw_hit(axes, _strip_left(place), top, hit)
        figure.savefig(png_path, format="png", facecolor=PAPER)


def _strip_left(place: int) -> int:
    return MARGIN + QUERY + GAP + place * (STRIP + GAP)


def _foot(top: float) -> float:
    """The line under the strips of the row that begins at `top`."""
    return top + PAD + FRAME + 2 * RIM + 16


def _draw_query(axes: Axes, top: float, row: Query) -> None:
    text = _drawable(row.text) or "(no text)"
    lines = textwrap.wrap(text, 29, max_lines=3, placeholder=" …")
    # Under the strips, should the letters be so wide that they reach them.
    style = {"va": "top", "linespacing": 1.35, "zorder": 0}
    _write(axes, MARGIN, top + PAD, "\n".join(lines), 10, **style)
    listed = any(hit.is_right for hit in row.hits)
    says = f"rank {row.rank:g}" if listed else f"right clip at rank {row.rank:g}"
    _write(axes, MARGIN, _foot(top), says, 8, GREEN if listed else ORANGE, weight="bold")


def _draw_hit(axes: Axes, left: float, row_top: float, hit: Hit) -> None:
    top, foot = row_top + PAD, _foot(row_top)
    height = FRAME + 2 * RIM
    rim = GREEN if hit.is_right else FAINT
    box = FancyBboxPatch(
        (left, top), STRIP, height, boxstyle="round,pad=0,rounding_size=6", fc=rim, ec="none"
    )
    axes.add_patch(box)
    pictures = _pick(hit.frames)
    for place, frame in enumerate(pictures + [BLANK] * (FRAMES - len(pictures))):
        x, y = left + RIM + place * (FRAME + SEAM), top + RIM
        axes.imshow(
            frame,
            extent=(x, x + FRAME, y + FRAME, y),
            interpolation="lanczos",
            aspect="auto",
            zorder=2,
        )
    name = _drawable(hit.clip_id)
    name = name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"
    weight, color = ("bold", GREEN) if hit.is_right else ("normal", GREY)
    _write(axes, left + RIM, foot, name, 7.5, color, weight=weight)
    _write(axes, left + STRIP - RIM, foot, f"{hit.score:.3f}", 7.5, color, ha="right")
    if hit.is_right:
        x, y = left + STRIP - 3, top + 3
        axes.add_patch(Circle((x, y), 10, fc=GREEN, ec=PAPER, lw=1.6, zorder=4))
        axes.plot([x - 4.5, x - 1.3, x + 4.5], [y, y + 3.6, y - 3.4], color=PAPER, lw=1.7, zorder=5)


def _pick(frames: np.ndarray) -> list[np.ndarray]:
    """At most FRAMES frames, evenly spread, cropped to squares: [n, H, W, 3] -> [S, S, 3] each."""
    side = min(frames.shape[1:3])
    y, x = ((edge - side) // 2 for edge in frames.shape[1:3])
    count = min(FRAMES, len(frames))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return [frames[i, y : y + side, x : x + side] for i in chosen]


def _drawable(text: str) -> str:
    """One line of text that a font renderer takes: no control character, no lone surrogate."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _write(
    axes: Axes, x: float, y: float, text: str, size: float, color: str = INK, **style: Any
) -> None:
    # A dollar sign in a caption is no formula.
    axes.text(x, y, text, size=size, color=color, parse_math=False, **style)
