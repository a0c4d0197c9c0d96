"""Runs the PyTorch model through golden runs: replays a file, and writes a recording of a run."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import torch_run
from data.errors import DataError, UsageError
from hvp_jax.monitoring import json_files
from hvp_jax.parity.golden import METRIC_GROUPS, load_golden
from hvp_jax.parity.runs import compare as compare_runs
from hvp_jax.parity.runs import golden_run
from hvp_jax.parity.runs.checks import CURVES
from hvp_jax.parity.runs.compare import WINDOWS, quarters
from hvp_jax.parity.runs.golden_run import GoldenRun
from hvp_jax.parity.runs.report import RunReport

PERTURBATION = 1e-12  # of the weights of the second run, relative
STABLE = 1e-6  # of the greatest loss: while the second run is closer, rounding has no effect
SNAPSHOT_TENSORS = (  # of every kind, so that a file stays small
    "clip.logit_scale",
    "clip.token_embedding.weight",
    "clip.transformer.resblocks.0.attn.in_proj_weight",
    "clip.visual.class_embedding",
    "clip.visual.transformer.resblocks.0.mlp.c_fc.bias",
    "clip.visual.proj",
    "PatchListProcessing.blocks.0.pcm.conv.conv.weight",
    "PatchListProcessing.blocks.1.pcm.score.bias",
    "PatchListProcessing.blocks.2.att.attn.kv.weight",
    "w_feat_w.0.bias",
    "p_feat_w.4.weight",
    "f_feat_w.2.weight",
)
INPUT_KEYS = (  # of the JSON: what a run starts from
    *("seed", "dims", "layers_zero_based", "optimizer", "frozen", "noise", "logit_scale_at_most"),
    *("normalisation", "train", "test", "frame_rule", "vocabulary_rule", "batch_rule"),
)
MEASURED = (
    "greatest difference from loss/curve within the first N steps, of its greatest value, and "
    "means over quarters of the run"
)


def open_run(path: Path) -> GoldenRun:
    """A file of a whole run. Raises UsageError or DataError."""
    arrays, metadata = load_golden(path)
    if not golden_run.is_run(arrays):
        raise DataError(f"{path}: is no golden file of a whole run: it has no array batches")
    return golden_run.open_run(path, arrays, metadata)


def check_output(path: Path) -> None:
    """Raises UsageError if the recording cannot be written there."""
    if path.suffix != ".npz":
        raise UsageError(f"--output={path} must end in .npz; a .json is written beside it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output={path}: {path.parent} is no folder that can be written to")
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            raise UsageError(f"{file} exists; name a new file for --output")


def compare(run: GoldenRun) -> tuple[RunReport, torch_run.Arrays]:
    """The report of a replay in float64, and what the replay computed."""
    computed = torch_run.replay(run, torch.float64)
    return compare_runs.compare_run(
        run, computed, "float64", parallel="PyTorch twin", devices=1
    ), computed


def default_snapshots(steps: int) -> dict[int, list[str]]:
    """The tensors to record after a quarter, after a half, and at the end."""
    return {max(1, steps * n // 4): list(SNAPSHOT_TENSORS) for n in (1, 2, 4)}


def record(path: Path, run: GoldenRun, computed: torch_run.Arrays) -> str:
    """Writes the file and its JSON; returns a line about it.

    `computed`: of the run in float64. It is repeated from perturbed weights and in float32.
    """
    curve = computed["loss/curve"]
    perturbed = torch_run.record(
        run, torch.float64, {}, evaluate=False, perturbation=PERTURBATION, label="perturbed"
    )["loss/curve"]
    float32 = torch_run.record(run, torch.float32, {}, evaluate=False, label="float32")[
        "loss/curve"
    ]
    if not (np.isfinite(curve).all() and np.isfinite(float32).all()):
        raise DataError("the loss is not finite; lower --learning_rate")
    means = {"float64": quarters(curve), "float32": quarters(float32)}
    out = np.flatnonzero(_error(perturbed, curve) > STABLE)
    stable = int(out[0]) if len(out) else run.steps
    inputs = {name: x for name, x in run.arrays.items() if name not in run.expected}
    computed = computed | {"loss/curve_perturbed": perturbed}
    curves = {name: computed[name] for name in CURVES}
    scores = {name: x for name, x in computed.items() if name.startswith("eval/")}
    after = {name: _stored(name, x) for name, x in computed.items() if name.startswith("after")}
    metadata = {key: run.metadata[key] for key in INPUT_KEYS if key in run.metadata}
    metadata |= _metrics(computed) | {
        "recorded_in": "float64, moments of the optimizer included",
        "recorded_by": f"benchmarks/record_run.py, PyTorch {torch.__version__}",
        "snapshots": sorted({int(name[5 : name.index("/")]) for name in after}),
        "perturbation": PERTURBATION,
        "stable_steps": stable,
        "measured": {
            "how": MEASURED,
            "float64_perturbed": _greatest_errors(perturbed, curve),
            "float32": _greatest_errors(float32, curve),
            "mean_loss_of_quarters": {name: x.tolist() for name, x in means.items()},
        },
    }
    _write(path, inputs | curves | after | scores, metadata)
    return (
        f"{path}: {run.steps} steps, loss {curve[0]:.4g} to {curve[-1]:.4g}; rounding has no "
        f"effect in the first {stable}\nin float32 the loss leaves it by "
        f"{_error(float32, curve).max():.1e}, and its means over quarters by "
        f"{_error(means['float32'], means['float64']).max():.1%}"
    )


def _error(curve: np.ndarray, golden: np.ndarray) -> np.ndarray:
    return np.abs(curve - golden) / np.abs(golden).max()


def _greatest_errors(curve: np.ndarray, golden: np.ndarray) -> dict[str, float]:
    """Number of leading steps -> greatest error in them."""
    windows = [n for n in WINDOWS if n < len(golden)] + [len(golden)]
    return {str(n): float(_error(curve, golden)[:n].max()) for n in windows}


def _metrics(computed: torch_run.Arrays) -> dict[str, dict[str, float]]:
    """metrics_t2v and so on, as the JSON has them."""
    groups: dict[str, dict[str, float]] = {}
    for name, x in computed.items():
        group, _, metric = name.partition("/")
        if group in METRIC_GROUPS:
            groups.setdefault(group, {})[metric] = float(x)
    return groups


def _stored(name: str, x: np.ndarray) -> np.ndarray:
    """Weights are stored in float32; the temperature is exact, it is one number."""
    return x if name.endswith(torch_run.LOG_SCALE) else x.astype(np.float32)


def _write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """The .npz appears last, so that it never lacks its JSON."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        json_files.write_json(path.with_suffix(".json"), metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
