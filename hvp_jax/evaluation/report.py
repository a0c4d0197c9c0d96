"""Reports for people: a table of metrics, a loss curve and a sheet of retrieved clips."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.errors import DataError
from data.records import Clip
from data.storage import files as storage
from data.storage.path import PathLike
from hvp_jax.evaluation import metrics
from hvp_jax.evaluation.contact_sheet import (
    FAINT,
    GREY,
    INK,
    NUM_HITS,
    ORANGE,
    PAPER,
    Hit,
    Query,
    draw_contact_sheet,
)
from hvp_jax.monitoring.metric_rows.files import read_rows

BLUE, LIGHT_BLUE = "#2f5fd0", "#b9c9f0"
NUM_QUERIES = 8  # on the contact sheet


def table(
    text_to_video: dict[str, float], video_to_text: dict[str, float], counts: dict[str, int]
) -> str:
    """The metrics as lines of text, with those of random scores.

    Reads `videos` and `captions` of the `counts`.
    """
    videos, captions = counts["videos"], counts["captions"]
    rows = {
        "text to video": text_to_video,
        "video to text": video_to_text,
        "chance": metrics.chance(videos),
    }
    names = list(rows["chance"])
    lines = [" " * 15 + "".join(f"{name:>9}" for name in names)]
    for name, row in rows.items():
        lines.append(f"{name:<15}" + "".join(f"{row[key]:>9.1f}" for key in names))
    lines.append(f"{captions:,} captions, {videos:,} videos; R@k in percent, ranks from 1")
    return "\n".join(lines)


def reranked_table(reranked: dict[str, dict[str, Any]]) -> str:
    """The metrics after each method of `rerank`, with a line that says what the method sees."""
    lines = ["the same scores, reranked; not to be compared with figures of raw scores:"]
    for method, result in reranked.items():
        for direction in ("text_to_video", "video_to_text"):
            if direction in result:
                label = f"{method} {'T2V' if direction == 'text_to_video' else 'V2T'}"
                values = "".join(f"{value:>9.1f}" for value in result[direction].values())
                lines.append(f"{label:<15}{values}")
    lines += [f"{method} {result['sees']}" for method, result in reranked.items()]
    return "\n".join(lines)


def line(results: dict[str, Any]) -> str:
    """R@1, R@10 and MdR of `text_to_video` and `video_to_text`, in one line."""
    t2v, v2t = results["text_to_video"], results["video_to_text"]
    return "  ".join(
        f"{name} R@1 {row['R@1']:.1f} R@10 {row['R@10']:.1f} MdR {row['MdR']:.1f}"
        for name, row in (("T2V", t2v), ("V2T", v2t))
    )


def draw_retrievals(
    png_path: PathLike,
    clips: Sequence[Clip],
    similarity: Float[np.ndarray, "texts clips"],
    source: Any,
) -> None:
    """Draws the contact sheet of an evaluation: first captions of evenly spaced clips.

    `similarity` has a row for each caption, in the order of the clips; `source` maps a clip's
    id to its frames, uint8 [n, H, W, 3].
    """
    first_text = np.cumsum([0, *(len(clip.captions) for clip in clips)])[:-1]  # [V]
    selected = np.linspace(0, len(clips) - 1, min(NUM_QUERIES, len(clips))).round().astype(int)
    scores = similarity[first_text[selected]]  # [queries, V]
    queries = []
    for correct, row, rank in zip(selected, scores, metrics.ranks(scores, selected), strict=True):
        best = np.argsort(-row, kind="stable")[:NUM_HITS]
        hits = [Hit(clips[i].clip_id, source[clips[i].clip_id], row[i], i == correct) for i in best]
        queries.append(Query(clips[correct].captions[0], rank, hits))
    draw_contact_sheet(png_path, queries)


def loss_curve(workdir: PathLike, png_path: PathLike) -> None:
    """Draws the training loss and, if there are any, the held-out T2V R@1 and R@10 beside it.

    Rows with `loss` give the curve and rows with `text_to_video` the metrics; `counts` with
    `videos` gives the level of chance. Raises DataError if the workdir has no metrics or they
    contain no loss.
    """
    rows = read_rows(workdir)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    evaluations = [row for row in rows if "text_to_video" in row]
    steps, values = np.array(losses, float).reshape(-1, 2).T  # null becomes NaN
    if not np.isfinite(values).any():
        raise DataError(f"{workdir}: its metrics contain no loss")
    figure = Figure(figsize=(10.5 if evaluations else 7, 3.9), dpi=160, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        num_panels = 2 if evaluations else 1
        panels = figure.subplots(1, num_panels, squeeze=False, width_ratios=(5, 3)[:num_panels])[0]
        _draw_loss(panels[0], steps, values)
        if evaluations:
            _draw_recalls(panels[1], evaluations)
            panels[1].set_xlim(panels[0].get_xlim())
        figure.tight_layout(pad=1.6, w_pad=3)
        with storage.open_atomically(png_path, "wb") as file:
            figure.savefig(file, format="png")


def _draw_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    finite = np.isfinite(values)
    axes.plot(steps, values, color=LIGHT_BLUE, lw=1)
    axes.plot(steps[finite], _smooth(values[finite]), color=BLUE, lw=2)
    set_style(axes, "Training loss")
    if not finite.all():
        transform = axes.get_xaxis_transform()
        axes.plot(steps[~finite], 0 * steps[~finite], "|", color=ORANGE, ms=14, transform=transform)
        note = f"{np.count_nonzero(~finite)} not finite"
        axes.text(1, 1.02, note, color=ORANGE, size=8.5, ha="right", transform=axes.transAxes)


def _draw_recalls(axes: Axes, rows: list[dict[str, Any]]) -> None:
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
    set_style(axes, "Held-out text to video, %")
    draw_legend(axes, columns=3)


def draw_legend(axes: Axes, columns: int) -> None:
    """Draws the legend between the title and the panel."""
    axes.legend(
        frameon=False,
        fontsize=8.5,
        labelcolor=GREY,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        handlelength=1.6,
        columnspacing=1.6,
    )


def set_style(axes: Axes, title: str) -> None:
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
    """Gaussian smoothing, with a sigma of a fiftieth of the run and truncated at both ends."""
    sigma = max(1.0, len(values) / 50)
    radius = int(3 * sigma)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    inside = slice(radius, radius + len(values))
    return np.convolve(values, window)[inside] / np.convolve(np.ones(len(values)), window)[inside]
