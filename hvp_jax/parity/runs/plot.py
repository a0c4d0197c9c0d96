"""A plot of PyTorch's loss and ours, and of their difference."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from data.storage.path import Path, PathLike
from hvp_jax.evaluation.contact_sheet import INK, ORANGE, PAPER
from hvp_jax.evaluation.report import BLUE, draw_legend, set_style
from hvp_jax.monitoring import json_files
from hvp_jax.parity.compare import relative_error
from hvp_jax.parity.runs.compare import TOLERANCE


def draw_curves(
    png_path: PathLike, golden: np.ndarray, computed: np.ndarray, *, judged: int
) -> None:
    """Draws two losses [steps], one over the other, and their difference.

    The difference is relative to the greatest loss. Its tolerance is drawn over the first
    `judged` steps.
    """
    steps = np.arange(1, len(golden) + 1)
    error, tolerance = relative_error(golden, computed), TOLERANCE["loss/"]
    figure = Figure(figsize=(10.5, 3.9), dpi=160, facecolor=PAPER)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "text.color": INK}):
        losses, errors = figure.subplots(1, 2, width_ratios=(5, 3))
        losses.plot(steps, golden, color=ORANGE, lw=3, label="PyTorch")
        losses.plot(steps, computed, color=BLUE, lw=1.2, label="JAX")
        set_style(losses, "Training loss")
        errors.semilogy(steps, np.maximum(error, 1e-17), color=BLUE, lw=1.2, label="difference")
        if judged:
            label = f"tolerance {tolerance:g}"
            errors.hlines(tolerance, 1, judged, color=ORANGE, lw=1, ls=":", label=label)
        set_style(errors, "Difference, of the greatest loss")
        for axes in (losses, errors):
            draw_legend(axes, columns=2)
        figure.tight_layout(pad=1.6, w_pad=3)
        with json_files.open_atomically(Path(png_path), "wb") as file:
            figure.savefig(file, format="png")
