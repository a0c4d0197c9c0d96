"""The figure of an `Explanation`: frames, what answered for the words, concepts, and the parts."""

import textwrap
import warnings

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data.storage.path import Path, PathLike
from hvp_jax.evaluation.contact_sheet import FAINT, GREY, INK, ORANGE, PAPER, drawable, write
from hvp_jax.monitoring import json_files
from hvp_jax.retrieval.explanation import Explanation, Member, Word

# Lengths in layout pixels, half of the image's.
MARGIN, LABEL_WIDTH, LEAST_STRIP = 40, 200, 620  # a strip: all frames of a row
LEFT = MARGIN + LABEL_WIDTH  # of the strips
CELL, GAP, ROW_GAP = 150, 6, 14  # the side of a frame, between frames, between rows
HEAD, HEADING, BAR, TERM_GAP = 118, 62, 15, 12  # heights
MAX_FRAMES, MAX_WORDS, MAX_CONCEPTS = 8, 4, 6  # that are shown
LEAST_SHARE = 0.01  # of what the first word gave, for another one to be shown
BLUE = "#2f5fd0"
COLOURS = ("#d9822b", "#2f5fd0", "#15995b", "#a3479b", "#c9b21f", "#17a2b8")  # of concepts
SAME_IN_ALL = ("[start]", "[padding]")  # words that no text has of its own


def draw(path: PathLike, explanation: Explanation) -> None:
    """Draws the figure as PNG. Raises UsageError if the file cannot be written."""
    sheet = _Sheet(explanation)
    figure = Figure(figsize=(sheet.width / 100, sheet.height / 100), dpi=200, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0), autoscale_on=False)
        axes.axis("off")
        sheet.draw(axes)
        with json_files.open_atomically(Path(path), "wb") as file:
            figure.savefig(file, format="png", facecolor=PAPER)


class _Sheet:
    """What is shown, and where."""

    def __init__(self, explanation: Explanation):
        self.explanation = explanation
        self.frames = _frames_shown(explanation)
        strip = len(self.frames) * (CELL + GAP) - GAP
        self.right = LEFT + max(strip, LEAST_STRIP)
        self.width = self.right + MARGIN
        words = [word for word in explanation.words if word.word not in SAME_IN_ALL]
        words.sort(key=lambda word: -word.contribution)
        most = words[0].contribution if words else 0.0
        least = min(most, LEAST_SHARE * most)
        self.words = [word for word in words if word.contribution >= least][:MAX_WORDS]
        self.taps = range(len(explanation.taps)) if explanation.patches else range(0)
        row = CELL + ROW_GAP
        bars = len(explanation.taps) * BAR + TERM_GAP
        self.height = HEAD + row + 20 + HEADING + len(explanation.parts) * bars + MARGIN // 2
        for rows in (self.words, self.taps):
            self.height += HEADING + len(rows) * row if rows else 0

    def draw(self, axes: Axes) -> None:
        self._draw_head(axes)
        top = self._draw_frames(axes, HEAD)
        if self.words:
            note = "the patches that are nearest to a word; outlined: a frame's class token"
            top = self._draw_heading(axes, top, "Words", note)
        for word in self.words:
            name = "end of text" if word.word == "[end]" else f"“{drawable(word.word)}”"
            lines = [f"{word.contribution:+.3f}", f"weight {word.weight:.3f}"]
            _draw_label(axes, top, name, lines)
            self._draw_strip(axes, top, _heat(self.explanation, word))
            top += CELL + ROW_GAP
        if self.taps:
            note = f"the {MAX_CONCEPTS} distilled patches that gave most, and what they consist of"
            top = self._draw_heading(axes, top, "Concepts", note)
        for row in self.taps:
            self._draw_concepts(axes, top, row)
            top += CELL + ROW_GAP
        note = "what each term gave at each tapped layer"
        self._draw_bars(axes, self._draw_heading(axes, top, "Score", note))

    def _draw_head(self, axes: Axes) -> None:
        explanation = self.explanation
        text = textwrap.shorten(drawable(explanation.text), 90, placeholder=" …")
        write(axes, MARGIN, 50, text, size=15, weight="bold")
        path, start, end = explanation.video
        name = drawable(path.rpartition("/")[2])
        if start is not None or end is not None:
            name += f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"
        write(axes, MARGIN, 76, name, size=9, color=GREY)
        style = {"ha": "right", "weight": "bold"}
        write(axes, self.right, 50, f"{explanation.score:.3f}", size=15, color=BLUE, **style)
        write(axes, self.right, 76, "score", size=9, color=GREY, ha="right")

    def _draw_heading(self, axes: Axes, top: int, title: str, note: str) -> int:
        """Draws a heading after a line; returns where its rows begin."""
        axes.plot([MARGIN, self.right], [top + 8, top + 8], color=FAINT, lw=0.8)
        write(axes, MARGIN, top + 34, title, size=11, weight="bold")
        write(axes, LEFT, top + 34, note, size=9, color=GREY)
        return top + HEADING - 12

    def _draw_frames(self, axes: Axes, top: int) -> int:
        """The frames and what each gave; returns where the next row begins."""
        given = dict.fromkeys(range(len(self.explanation.images)), 0.0)
        for frame in self.explanation.frames:
            if frame.number in given:
                given[frame.number] += sum(frame.contributions.values())
        lines = ["and what each gave"] if self.explanation.frames else []
        _draw_label(axes, top, "Frames", lines)
        for x, number in self._places():
            self._draw_image(axes, x, top, self.explanation.images[number])
            y = top + CELL + 15
            write(axes, x, y, f"{number + 1}", size=7.5, color=GREY)
            if self.explanation.frames:
                write(axes, x + CELL, y, f"{given[number]:+.3f}", size=7.5, ha="right")
        return top + CELL + ROW_GAP + 20

    def _places(self) -> list[tuple[int, int]]:
        """The left edge and the number of each frame that is shown."""
        return [(LEFT + i * (CELL + GAP), number) for i, number in enumerate(self.frames)]

    def _draw_image(self, axes: Axes, x: int, y: int, image: np.ndarray) -> None:
        extent = (x, x + CELL, y + CELL, y)
        axes.imshow(image, extent=extent, interpolation="lanczos", aspect="auto", zorder=2)

    def _draw_outline(self, axes: Axes, x: int, y: int, colour: str, alpha: int | float) -> None:
        """Marks a frame whose class token is among the patches."""
        box = Rectangle((x, y), CELL, CELL, fill=False, ec=colour, lw=2.4, alpha=alpha, zorder=3)
        axes.add_patch(box)

    def _draw_strip(self, axes: Axes, top: int, heat: Float[np.ndarray, "t p"]) -> None:
        """The frames, faded where they did not answer; `heat` is from 0 to 1."""
        for x, number in self._places():
            image = self.explanation.images[number] / 255
            grid = _at_size(_grid(heat[number]), len(image))[:, :, None]
            tint = 0.72 * image + 0.28 * np.array(matplotlib.colors.to_rgb(ORANGE))
            self._draw_image(axes, x, top, (1 - grid) * _faded(image) + grid * tint)
            if heat[number, 0] > 0:
                self._draw_outline(axes, x, top, ORANGE, float(heat[number, 0]))

    def _draw_concepts(self, axes: Axes, top: int, row: int) -> None:
        """The patches of the frames in the colour of the concept that they are in, at a tap."""
        tap = self.explanation.taps[row]
        patches = [patch for patch in self.explanation.patches if patch.tap == tap]
        patches.sort(key=lambda patch: -sum(patch.contributions.values()))
        _draw_label(axes, top, f"layer {tap}", [])
        marked = np.full(_shape(self.explanation), -1)
        for i, patch in enumerate(patches[:MAX_CONCEPTS]):
            _mark(marked, patch.members, i)
            x, y = MARGIN + i % 2 * 84, top + 34 + i // 2 * 17
            axes.add_patch(Rectangle((x, y - 8), 9, 9, fc=COLOURS[i], ec="none"))
            value = sum(patch.contributions.values())
            write(axes, x + 14, y, f"{value:+.3f}", size=7.5, color=GREY)
        palette = np.array([matplotlib.colors.to_rgb(colour) for colour in COLOURS] + [(1, 1, 1)])
        for x, number in self._places():
            image = _faded(self.explanation.images[number] / 255)
            grid = _at_size(_grid(marked[number]), len(image))
            strength = np.where(grid < 0, 0, 0.62)[:, :, None]
            self._draw_image(axes, x, top, (1 - strength) * image + strength * palette[grid])
            if marked[number, 0] >= 0:
                self._draw_outline(axes, x, top, COLOURS[marked[number, 0]], 1)

    def _draw_bars(self, axes: Axes, top: int) -> None:
        parts = self.explanation.parts
        values = [0.0, *(value for part in parts.values() for value in part)]
        scale = ((self.right - LEFT) - 170) / max(max(values) - min(values), 1e-9)
        zero = LEFT + 60 - min(values) * scale
        for term, part in parts.items():
            _draw_label(axes, top, term.replace("_", "–"), [f"{sum(part):+.3f}"])
            for i, (tap, value) in enumerate(zip(self.explanation.taps, part, strict=True)):
                y = top + i * BAR
                write(axes, LEFT, y + 10, f"layer {tap}", size=7.5, color=GREY)
                left, width = min(zero, zero + value * scale), abs(value) * scale
                axes.add_patch(Rectangle((left, y + 1), width, BAR - 4, fc=BLUE, ec="none"))
                x = max(zero, zero + value * scale) + 6
                write(axes, x, y + 10, f"{value:+.3f}", size=7.5, color=GREY)
            top += max(len(part) * BAR, 32) + TERM_GAP


def _draw_label(axes: Axes, top: int, name: str, lines: list[str]) -> None:
    short = name if len(name) <= 22 else f"{name[:21]}…"
    write(axes, MARGIN, top + 14, short, size=10, color=INK)
    for i, line in enumerate(lines):
        write(axes, MARGIN, top + 32 + i * 16, line, size=8.5, color=GREY)


def _shape(explanation: Explanation) -> tuple[int, int]:
    """(frames, tokens of a frame)."""
    return explanation.concepts[-1].shape[1:]


def _mark(tokens: np.ndarray, members: tuple[Member, ...], value: int | float) -> None:
    """Sets the tokens [frames, tokens of a frame] that are members."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    for frame, row, column in ((m.frame, m.row, m.column) for m in members):
        if frame < len(tokens):  # padding is not shown
            place = 0 if row is None or column is None else 1 + row * side + column
            tokens[frame, place] = value


def _heat(explanation: Explanation, word: Word) -> Float[np.ndarray, "t p"]:
    """How near a word each token of a frame is, summed over taps, from 0 to 1."""
    weights = explanation.tap_weights["word_patch"]
    near = {
        (answer.tap, answer.patch): weight * max(answer.cosine, 0)
        for answer, weight in zip(word.answers, weights, strict=True)
    }
    heat = np.zeros(_shape(explanation))
    for patch in explanation.patches:
        if value := near.get((patch.tap, patch.number)):
            tokens = np.zeros_like(heat)
            _mark(tokens, patch.members, value)
            heat += tokens
    return heat / max(heat.max(), 1e-12)


def _frames_shown(explanation: Explanation) -> list[int]:
    """The numbers of at most MAX_FRAMES frames, those that gave most."""
    total = np.zeros(len(explanation.images))
    for frame in explanation.frames:
        if frame.number < len(total):
            total[frame.number] += sum(frame.contributions.values())
    for patch in explanation.patches:
        for member in patch.members:
            if member.frame < len(total):
                total[member.frame] += sum(patch.contributions.values()) / len(patch.members)
    return sorted(np.argsort(-total, kind="stable")[:MAX_FRAMES].tolist())


def _grid(tokens: np.ndarray) -> np.ndarray:
    """A frame's patches as rows and columns."""
    side = round((len(tokens) - 1) ** 0.5)
    return tokens[1:].reshape(side, side)


def _at_size(grid: np.ndarray, size: int) -> np.ndarray:
    """Every cell of a square grid as large as its patch in an image of `size` pixels."""
    index = np.arange(size) * len(grid) // size
    return grid[index[:, None], index]


def _faded(image: np.ndarray) -> np.ndarray:
    """A light grey version of an image of values from 0 to 1, of even contrast."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    grey = (grey - grey.min()) / max(np.ptp(grey), 1e-6)
    return np.repeat((0.22 * grey + 0.75)[:, :, None], 3, axis=2)
