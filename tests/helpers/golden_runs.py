"""The golden file of a whole run, and shortened or changed copies of it."""

import copy
from pathlib import Path

import numpy as np

from hvp_jax.parity.golden import load_golden
from hvp_jax.parity.runs import golden_run
from hvp_jax.parity.runs.checks import CURVES
from hvp_jax.parity.runs.golden_run import GoldenRun
from tests.helpers.command import GOLDEN
from tests.helpers.parity_files import write

RUN = GOLDEN / "run_small.npz"


def load_run() -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the metadata (JSON) of the file."""
    return load_golden(RUN)


def shortened(steps: int) -> tuple[dict[str, np.ndarray], dict]:
    """The first steps of the run, with the snapshots up to there and without its evaluation."""
    arrays, metadata = load_run()
    whole = golden_run.open_run(RUN, arrays, metadata)
    late = [f"after{step}/" for step in whole.snapshots if step > steps]
    curves = ("batches", *CURVES)
    kept = {name: x[:steps] if name in curves else x for name, x in arrays.items()}
    kept = {k: x for k, x in kept.items() if not k.startswith(("eval/", *late))}
    metadata = {k: v for k, v in metadata.items() if not k.startswith("metrics_")}
    measured = {k: v for k, v in metadata["measured"].items() if k != "mean_loss_of_quarters"}
    return kept, metadata | {"stable_steps": steps, "measured": measured}


def open_shortened(steps: int) -> GoldenRun:
    return golden_run.open_run(RUN, *shortened(steps))


def write_run(
    path: Path, steps: int, changes: dict | None = None, metadata: dict | None = None
) -> Path:
    """Writes the first steps of the run with some arrays and keys replaced; None removes one."""
    arrays, original = shortened(steps)
    arrays |= changes or {}
    merged = copy.deepcopy(original) | (metadata or {})
    write(
        path,
        {name: x for name, x in arrays.items() if x is not None},
        {name: x for name, x in merged.items() if x is not None},
    )
    return path
