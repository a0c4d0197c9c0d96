"""What a person looks at: a table of the figures, a loss curve, a sheet of retrieved clips."""

import os
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.errors import DataError
from data.records import Clip
from hvp_jax.evaluation import metrics
from hvp_jax.evaluation.contact_sheet import (
    FAINT,
    GREY,
    HITS,
    INK,
    ORANGE,
    PAPER,
    Hit,
    Query,
    contact_sheet,
)
from hvp_jax.monitoring import metrics_logger

BLUE, LIGHT_BLUE = "#2f5fd0", "#b9c9f0"
SHOWN = 8  # queries on the contact sheet


def table(results: dict[str, Any]) -> str:
    """The figures of an eval.json as lines of text, with what chance would reach.

    Reads `text_to_video`, `video_to_text` and `counts`, with `videos` and `captions`.
    """
    videos, captions = results["counts"]["videos"], results["counts"]["captions"]
    rows = {
        "text to video": results["text_to_video"],
        "video to text": results["video_to_text"],
        "chance": metrics.chance(videos),
    }
    names = list(rows["chance"])
    lines = [" " * 15 + "".join(f"{name:>9}" for name in names)]
    for name, figures in rows.items():
        lines.append(f"{name:<15}" + "".join(f"{figures[key]:>9.1f}" for key in names))
    lines.append(f"{captions:,} captions, {videos:,} videos; R@k in percent, ranks from 1")
    return "\n".join(lines)


def line(results: dict[str, Any]) -> str:
    """The main figures of what `table` shows, in one line."""
    t2v, v2t = results["text_to_video"], results["video_to_text"]
    return "  ".join(
        f"{name} R@1 {figures['R@1']:.1f} R@10 {figures['R@10']:.1f} MdR {figures['MdR']:.1f}"
        for name, figures in (("T2V", t2v), ("V2T", v2t))
    )


def contact_sheet_of(
    png_path: str | os.PathLike,
    clips: Sequence[Clip],
    similarity: np.ndarray,
    source: Any,
) -> None:
    """The contact sheet of an evaluation: the first captions of clips evenly spread over it.

    `similarity` [texts, videos] has a row for each caption, clip by clip; `source` gives
    frames uint8 [n, H, W, 3] for a clip's id.
    """
    first_text = np.cumsum([0, *(len(clip.captions) for clip in clips)])[:-1]  # [V]
    chosen = np.linspace(0, len(clips) - 1, min(SHOWN, len(clips))).round().astype(int)
    scores = similarity[first_text[chosen]]  # [shown, V]
    rows = []
    for right, row, rank in zip(chosen, scores, metrics.ranks(scores, chosen), strict=True):
        best = np.argsort(-row, kind="stable")[:HITS]
        names = [clips[i].clip_id for i in best]
        hits = [
            Hit(name, source[name], row[i], i == right) for name, i in zip(names, best, strict=True)
        ]
        rows.append(Query(clips[right].captions[0], rank, hits))
    contact_sheet(png_path, rows)


def loss_curve(metrics_jsonl_path: str | os.PathLike, png_path: str | os.PathLike) -> None:
    """Draws the loss of a run, and beside it the held-out T2V R@1 and R@10 if there are any.

    Of the rows, those with `loss` make the curve and those with `text_to_video` the
    figures; `counts` with `videos` in the latter gives the line of chance. Raises
    DataError if the file is no metrics.jsonl or holds no loss.
    """
    rows = metrics_logger.read_rows(metrics_jsonl_path)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    figures = [row for row in rows if "text_to_video" in row]
    steps, values = np.array(losses, float).reshape(-1, 2).T  # null becomes NaN
    if not np.isfinite(values).any():
        raise DataError(f"{metrics_jsonl_path} holds no loss to draw")
    figure = Figure(figsize=(10.5 if figures else 7, 3.9), dpi=160, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        panels = figure.subplots(
            1, 2 if figures else 1, squeeze=False, width_ratios=(5, 3)[: 2 if figures else 1]
        )[0]
        _draw_loss(panels[0], steps, values)
        if figures:
            _draw_figures(panels[1], figures)
            panels[1].set_xlim(panels[0].get_xlim())
        figure.tight_layout(pad=1.6, w_pad=3)
        figure.savefig(png_path, format="png")


def _draw_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    sound = np.isfinite(values)
    axes.plot(steps, values, color=LIGHT_BLUE, lw=1)
    axes.plot(steps[sound], _smooth(values[sound]), color=BLUE, lw=2)
    _finish(axes, "Training loss")
    if not sound.all():
        foot = axes.get_xaxis_transform()
        axes.plot(steps[~sound], 0 * steps[~sound], "|", color=ORANGE, ms=14, transform=foot)
        note = f"{np.count_nonzero(~sound)} not finite"
        axes.text(1, 1.02, note, color=ORANGE, size=8.5, ha="right", transform=axes.transAxes)


def _draw_figures(axes: Axes, rows: list[dict[str, Any]]) -> None:
    steps = [row["step"] for row in rows]
    videos = rows[-1].get("counts", {}).get("videos")
    for name, color in (("R@10", BLUE), ("R@1", ORANGE)):
        values = np.array([row["text_to_video"][name] for row in rows], float)
        label = f"{name}  {values[-1]:.1f}"
        axes.plot(steps, values, "o-", color=color, lw=1.8, ms=4, label=label)
        if videos:
            axes.axhline(metrics.chance(videos)[name], color=color, lw=1, ls=":")
    if videos:
        axes.plot([], [], color=GREY, lw=1, ls=":", label="chance")
    axes.set_ylim(bottom=0)
    _finish(axes, "Held-out text to video, %")
    axes.legend(
        frameon=False,
        fontsize=8.5,
        labelcolor=GREY,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _finish(axes: Axes, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", size=11, weight="bold", color=INK, pad=28)
    axes.set_xlabel("step", color=GREY, size=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean weighted by a Gaussian of a fiftieth of the run, cut off at both ends: [n] -> [n]."""
    width = max(1.0, len(values) / 50)
    reach = int(3 * width)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = slice(reach, reach + len(values))
    return np.convolve(values, window)[inside] / np.convolve(np.ones(len(values)), window)[inside]
