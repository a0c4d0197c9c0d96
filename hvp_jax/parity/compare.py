"""Compares one array with its golden one: errors, tolerances, and the table of all."""

import dataclasses

import numpy as np

# Relative to the array's magnitude. Golden arrays are stored in float32, rounded by 6e-8.
TOLERANCE = {
    "float64": {"forward": 1e-6, "gradient": 1e-6, "optimizer": 1e-6},
    "float32": {"forward": 1e-4, "gradient": 1e-3, "optimizer": 1e-3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayResult:
    """One row of the table; the subclass says how the comparison ended."""

    name: str
    shape: tuple[int, ...]
    absolute: float | None = None  # greatest absolute difference; None: not compared
    relative: float | None = None  # the same over the golden array's greatest magnitude
    ok: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passed(ArrayResult):
    ok: bool = True
    tolerance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverTolerance(ArrayResult):
    tolerance: float
    reason: str = "over tolerance"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotCompared(ArrayResult):
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotJudged(ArrayResult):
    """The errors are shown, and are no reason to fail."""

    ok: bool = True
    reason: str


def tolerance_kind(name: str) -> str:
    if name.startswith("grad"):
        return "gradient"
    return "optimizer" if name.startswith("after") or name == "loss/curve" else "forward"


def subsample(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Every n-th entry of each axis, so that `array` gets `shape`; unchanged if no n does."""
    if array.ndim != len(shape) or any(
        b < 1 or -(-a // -(-a // b)) != b for a, b in zip(array.shape, shape, strict=True)
    ):
        return array
    strides = (-(-a // b) for a, b in zip(array.shape, shape, strict=True))
    return array[tuple(slice(None, None, stride) for stride in strides)]


def compare_arrays(
    name: str, golden: np.ndarray, computed: np.ndarray | None, tolerance: dict[str, float]
) -> ArrayResult:
    """Compares with the tolerance of the array's kind; integers and booleans must be equal."""
    limit = 0.0 if golden.dtype.kind in "iub" else tolerance[tolerance_kind(name)]
    if computed is not None:
        computed = subsample(np.asarray(computed), golden.shape)
    return compare_within(name, golden, computed, limit)


def relative_error(golden: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """Absolute differences over the golden array's greatest magnitude, unless that is 0."""
    difference = np.abs(computed.astype(np.float64) - golden.astype(np.float64))
    return difference / (float(np.abs(golden.astype(np.float64)).max(initial=0.0)) or 1.0)


def compare_within(
    name: str,
    golden: np.ndarray,
    computed: np.ndarray | None,
    limit: float,
    *,
    absolute: bool = False,
) -> ArrayResult:
    """Compares; `limit` is relative to the golden array's greatest magnitude, or `absolute`."""
    shape = golden.shape
    if computed is None:
        reason = "not compared: the model does not compute it"
        return NotCompared(name=name, shape=shape, reason=reason)
    computed = np.asarray(computed)
    if computed.shape != shape:
        reason = f"the model's array has shape {list(computed.shape)}"
        return NotCompared(name=name, shape=shape, reason=reason)
    error = float(np.abs(computed.astype(np.float64) - golden.astype(np.float64)).max(initial=0.0))
    relative = float(relative_error(golden, computed).max(initial=0.0))
    # Written so that a NaN in either array fails.
    result = Passed if (error if absolute else relative) <= limit else OverTolerance
    return result(name=name, shape=shape, absolute=error, relative=relative, tolerance=limit)


def table(rows: list[ArrayResult], precision: str) -> str:
    """The rows as text, with a summary as the last line."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'array':<{width}}  {'absolute':>10}  {'relative':>10}"]
    for row in rows:
        errors = "  ".join(
            f"{'-' if error is None else format(error, '.2e'):>10}"
            for error in (row.absolute, row.relative)
        )
        lines.append(f"{row.name:<{width}}  {errors}  {getattr(row, 'reason', 'ok')}")
    judged = [row for row in rows if not isinstance(row, NotJudged)]
    failed = sum(not row.ok for row in judged)
    worst = np.max([row.relative or 0 for row in judged], initial=0)  # NaN if one is
    summary = (
        f"{len(judged)} arrays in {precision}: {len(judged) - failed} equal, {failed} not; "
        f"greatest relative error {worst:.2e} (of the array's greatest magnitude)"
    )
    if len(judged) < len(rows):
        summary += f"; {len(rows) - len(judged)} arrays are not judged"
    return "\n".join([*lines, summary])
