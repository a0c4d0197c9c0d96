"""One array against another: errors, tolerances, the table."""

import numpy as np

# Relative to the array's own size. Golden arrays are stored in float32: 6e-8 of themselves.
TOLERANCE = {
    "float64": {"forward": 1e-6, "gradient": 1e-6, "optimizer": 1e-6},
    "float32": {"forward": 1e-4, "gradient": 1e-3, "optimizer": 1e-3},
}


def tolerance_kind(name: str) -> str:
    if name.startswith("grad"):
        return "gradient"
    return "optimizer" if name.startswith("after") or name == "loss/curve" else "forward"


def subsample(ours: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Every n-th entry of each axis, as a golden array that is `shape` was thinned."""
    if ours.ndim != len(shape) or any(
        b < 1 or -(-a // -(-a // b)) != b for a, b in zip(ours.shape, shape, strict=True)
    ):
        return ours
    return ours[
        tuple(slice(None, None, -(-a // b)) for a, b in zip(ours.shape, shape, strict=True))
    ]


def compare_arrays(name: str, golden: np.ndarray, ours: np.ndarray | None, tolerance: dict) -> dict:
    """One row of the table."""
    row = {"name": name, "shape": list(golden.shape), "absolute": None, "relative": None}
    if ours is None:
        return {**row, "ok": False, "reason": "not compared: nothing here computes it"}
    ours = subsample(np.asarray(ours), golden.shape)
    if ours.shape != golden.shape:
        return {**row, "ok": False, "reason": f"ours is of shape {list(ours.shape)}"}
    exact = golden.dtype.kind in "iub"
    limit = 0.0 if exact else tolerance[tolerance_kind(name)]
    difference = np.abs(ours.astype(np.float64) - golden.astype(np.float64))
    row["absolute"] = float(difference.max(initial=0.0))
    size = float(np.abs(golden.astype(np.float64)).max(initial=0.0))
    row["relative"] = row["absolute"] / size if size else row["absolute"]
    # Written so that a NaN on either side is a failure.
    ok = bool(row["relative"] <= limit)
    return {**row, "ok": ok, "tolerance": limit} | ({} if ok else {"reason": "over tolerance"})


def table(rows: list[dict], precision: str) -> str:
    """The rows as text, the worst of each kind last."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'array':<{width}}  {'absolute':>10}  {'relative':>10}"]
    for row in rows:
        numbers = "  ".join(
            f"{'-' if row[key] is None else format(row[key], '.2e'):>10}"
            for key in ("absolute", "relative")
        )
        lines.append(f"{row['name']:<{width}}  {numbers}  {row.get('reason', 'ok')}")
    failed = sum(not row["ok"] for row in rows)
    worst = max((row["relative"] or 0 for row in rows), default=0)
    lines.append(
        f"{len(rows)} arrays in {precision}: {len(rows) - failed} equal, {failed} not; "
        f"greatest relative error {worst:.2e} (of the array's greatest magnitude)"
    )
    return "\n".join(lines)
