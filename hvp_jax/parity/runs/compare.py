"""Compares a replayed run with PyTorch's, array by array and step by step."""

import dataclasses
from typing import Any

import numpy as np

from hvp_jax.parity.compare import (
    ArrayResult,
    NotCompared,
    NotJudged,
    compare_within,
    relative_error,
)
from hvp_jax.parity.golden import json_metrics
from hvp_jax.parity.runs.checks import CURVES
from hvp_jax.parity.runs.golden_run import GoldenRun
from hvp_jax.parity.runs.report import CurveOut, Float32Runs, RunReport

# In float64, relative to the greatest magnitude of the array; of scores, absolute.
TOLERANCE = {
    "loss/": 1e-6,
    "grad_norm": 1e-5,
    "lr_factor": 1e-12,
    "logit_scale": 1e-6,
    "after": 1e-6,
    "eval/": 1e-5,
    "metrics": 0.0,
}
# In float32 rounding moves tokens to other clusters, and two runs of the same program part. Only
# the schedule is compared, and means of the loss over quarters of the run: within this tolerance,
# of the greatest mean, or twice the error of PyTorch's own float32 run.
FLOAT32_QUARTERS = 0.03
FLOAT32_LR_FACTOR = 1e-6
WINDOWS = (2, 5, 10, 20, 50, 100, 200)  # leading steps whose greatest error is shown in float32
UNSTABLE = "not judged: from here on PyTorch's own run depends on rounding"
NOT_IN_FLOAT32 = "not judged in float32"


def compare_run(
    run: GoldenRun,
    computed: dict[str, np.ndarray],
    precision: str,
    *,
    parallel: str,
    devices: int,
    plot: str | None = None,
) -> RunReport:
    """The report of a replay, whose arrays have the names of the file."""
    expected = run.expected | {
        f"{name} (.json)": np.asarray(value, float)
        for name, value in json_metrics(run.metadata).items()
    }
    values = {name: computed.get(name.removesuffix(" (.json)")) for name in expected}
    judge = _judge_float64 if precision == "float64" else _judge_float32
    rows = [judge(run, name, array, values[name]) for name, array in expected.items()]
    if precision == "float32":
        rows.append(_judge_quarters(run, computed["loss/curve"]))
    failed = [row.name for row in rows if not row.ok]
    out = next((r for r in rows if isinstance(r, CurveOut) and r.name == "loss/curve"), None)
    return RunReport(
        ok=not failed,
        golden=str(run.path),
        precision=precision,
        parallel=parallel,
        devices=devices,
        steps=run.steps,
        judged_steps=run.stable_steps if precision == "float64" else 0,
        compared=sum(not isinstance(row, NotJudged) for row in rows),
        failed=failed,
        first_out=out,
        greatest_errors=_greatest_errors(rows),
        float32=_float32_runs(run, computed) if precision == "float32" else None,
        plot=plot,
        arrays=rows,
    )


def _limit(name: str) -> float:
    return next(limit for prefix, limit in TOLERANCE.items() if name.startswith(prefix))


def _judge_float64(
    run: GoldenRun, name: str, golden: np.ndarray, computed: np.ndarray | None
) -> ArrayResult:
    if computed is None or not name.startswith(tuple(TOLERANCE)):
        return compare_within(name, golden, None, 0.0)
    if name in CURVES:
        return _judge_curve(name, golden, computed, run.stable_steps)
    row = compare_within(name, golden, computed, _limit(name), absolute=name.startswith("eval/"))
    step = int(name[5 : name.index("/")]) if name.startswith("after") else run.steps
    if step <= run.stable_steps or isinstance(row, NotCompared):
        return row
    return _not_judged(row, UNSTABLE)


def _judge_curve(
    name: str, golden: np.ndarray, computed: np.ndarray, judged_steps: int
) -> ArrayResult:
    limit = _limit(name)
    row = compare_within(name, golden[:judged_steps], computed[:judged_steps], limit)
    if row.ok or isinstance(row, NotCompared):
        return row
    allowed = limit * np.abs(golden[:judged_steps]).max()
    out = ~(np.abs(computed - golden)[:judged_steps] <= allowed)  # a NaN is out
    step = int(out.argmax())
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    fields["reason"] = f"over tolerance from step {step + 1}"
    return CurveOut(
        **fields, step=step + 1, golden=float(golden[step]), computed=float(computed[step])
    )


def _judge_float32(
    run: GoldenRun, name: str, golden: np.ndarray, computed: np.ndarray | None
) -> ArrayResult:
    if name == "lr_factor":
        return compare_within(name, golden, computed, FLOAT32_LR_FACTOR)
    row = compare_within(name, golden, computed, np.inf)
    return row if isinstance(row, NotCompared) else _not_judged(row, NOT_IN_FLOAT32)


def _judge_quarters(run: GoldenRun, computed: np.ndarray) -> ArrayResult:
    golden, pytorch = quarters(run.expected["loss/curve"]), _pytorch_float32(run)["quarters"]
    limit = FLOAT32_QUARTERS
    if pytorch is not None and len(golden) == len(pytorch):
        limit = max(limit, 2 * float(relative_error(golden, np.array(pytorch)).max()))
    return compare_within("loss/curve, means of quarters", golden, quarters(computed), limit)


def _pytorch_float32(run: GoldenRun) -> dict[str, Any]:
    """What the JSON records of PyTorch's own float32 run."""
    measured = run.metadata.get("measured", {})
    means = measured.get("mean_loss_of_quarters", {}).get("float32")
    return {"errors": measured.get("float32", {}), "quarters": means}


def _not_judged(row: ArrayResult, reason: str) -> NotJudged:
    names = ("name", "shape", "absolute", "relative")
    return NotJudged(**{name: getattr(row, name) for name in names}, reason=reason)


def _greatest_errors(rows: list[ArrayResult]) -> dict[str, float]:
    """Relative for curves and weights, absolute for scores."""
    errors: dict[str, float] = {}
    for row in rows:
        if row.relative is None or row.name.startswith("metrics"):
            continue
        name = row.name
        if row.name.startswith("after"):
            name = f"weights after {row.name[5 : row.name.index('/')]} updates"
        error = row.absolute if row.name.startswith("eval/") else row.relative
        errors[name] = float(np.max([errors.get(name, 0.0), error or 0.0]))  # a NaN stays
    return errors


def quarters(curve: np.ndarray) -> np.ndarray:
    """The mean of a curve [steps] over each quarter of the run, or each step of a shorter one."""
    return np.array([part.mean() for part in np.array_split(curve, min(4, len(curve)))])


def _float32_runs(run: GoldenRun, computed: dict[str, np.ndarray]) -> Float32Runs:
    golden, pytorch = run.expected["loss/curve"], _pytorch_float32(run)
    windows = [n for n in WINDOWS if n < run.steps] + [run.steps]
    error = relative_error(golden, computed["loss/curve"])
    return Float32Runs(
        greatest_error={
            "PyTorch float32": {n: pytorch["errors"].get(str(n)) for n in windows},
            "JAX float32": {n: float(error[:n].max()) for n in windows},
        },
        quarters={
            "PyTorch float64": quarters(golden).tolist(),
            "PyTorch float32": pytorch["quarters"],
            "JAX float32": quarters(computed["loss/curve"]).tolist(),
        },
    )
