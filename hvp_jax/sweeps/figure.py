"""A sweep's figure: how much each setting's R@1 differs from the base's, sorted."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.storage.path import Path
from hvp_jax.evaluation.contact_sheet import FAINT, GREY, INK, ORANGE, PAPER
from hvp_jax.evaluation.report import BLUE, set_style
from hvp_jax.monitoring import json_files
from hvp_jax.sweeps.setting_result import SettingResult

METRIC = "R@1"
LONGEST = 28  # characters of a setting's name


def draw(png_path: Path, base: str, settings: Sequence[SettingResult]) -> None:
    """Draws a dot for each setting with its 95% interval; hollow where there is no interval.

    Settings without a difference to the base are left out. Both panels have the order of text to
    video, the best at the top; a significant difference is orange.
    """
    rows = [row for row in settings if row.difference]
    rows.sort(key=lambda row: row.difference[METRIC]["mean"])
    figure = Figure(figsize=(10.5, 1.7 + 0.34 * max(len(rows), 2)), dpi=160, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_panel(left, f"Text to video, {METRIC}", [row.difference[METRIC] for row in rows])
        _draw_panel(
            right,
            f"Video to text, {METRIC}",
            [row.difference_video_to_text[METRIC] for row in rows],
        )
        left.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        left.set_ylim(-0.6, max(len(rows), 1) - 0.4)
        for axes in (left, right):
            axes.set_xlabel(f"difference to {_short(base)}, points", color=GREY, size=9)
        figure.tight_layout(pad=1.6, w_pad=3)
        with json_files.open_atomically(png_path, "wb") as file:
            figure.savefig(file, format="png")


def _draw_panel(axes: Axes, title: str, differences: Sequence[dict[str, Any]]) -> None:
    axes.axvline(0, color=GREY, lw=1, ls=":")
    for y, value in enumerate(differences):
        color = ORANGE if value["significant"] else BLUE
        if value["low"] is not None:
            axes.hlines(y, value["low"], value["high"], color=color, lw=2)
        fill = PAPER if value["low"] is None else color
        axes.plot(value["mean"], y, "o", ms=6, mec=color, mfc=fill)
    set_style(axes, title)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, lw=0.8)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
