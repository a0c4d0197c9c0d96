"""The verb `parity`: the model's numbers against those of PyTorch."""

import jax
import jax.numpy as jnp

from data.errors import UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.simulated import simulate_devices
from hvp_jax.parity import golden as golden_files
from hvp_jax.parity.report import ParityReport
from hvp_jax.parity.runs import compare, golden_run, plot, replay
from hvp_jax.parity.runs.report import RunReport

DEVICES = 8  # that --parallel simulates on the CPU
PLOT_FILE = "parity_run.png"


def run(
    golden: Path | None = None,
    source: Path | None = None,
    format: str = "auto",
    precision: str | None = None,
    parallel: str | None = None,
    workdir: Path | None = None,
) -> ParityReport:
    """Compares a golden file (by default in float64) or a checkpoint in PyTorch (float32)."""
    precision = precision or ("float64" if golden else "float32")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")
    if parallel:
        simulate_devices(DEVICES)
    if source:
        from hvp_jax.parity.torch_checkpoint import compare_checkpoint

        _refuse_run_flags(source, parallel, workdir)
        return compare_checkpoint(source, format, precision)
    assert golden is not None  # the command line requires one of the two
    arrays, metadata = golden_files.load_golden(golden)
    if golden_run.is_run(arrays):
        golden_of_run = golden_run.open_run(golden, arrays, metadata)
        return _compare_run(golden_of_run, precision, parallel, workdir)
    _refuse_run_flags(golden, parallel, workdir)
    return golden_files.compare_golden(golden, arrays, metadata, precision)


def _refuse_run_flags(path: Path, parallel: str | None, workdir: Path | None) -> None:
    for name, value in (("--parallel", parallel), ("--workdir", workdir)):
        if value:
            raise UsageError(f"{name} is for golden files of a whole run, and {path} is none")


def _require_writable(workdir: Path) -> Path:
    """The file for the plot. Raises UsageError now, not after minutes, if it cannot be written."""
    json_files.make_workdir(workdir)
    path = workdir / PLOT_FILE
    try:
        if not storage.create(path, b"") and path.is_dir():
            raise UsageError(f"cannot write {path}: Is a directory")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return path


def _partitioner(batch_size: int, parallel: str | None) -> Partitioner:
    """One device, or as many as divide the batch."""
    devices = jax.devices()
    if not parallel:
        return Partitioner("pmap", devices=devices[:1])
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    fsdp = parallel == "fsdp"
    return Partitioner("shard_map" if fsdp else parallel, fsdp, devices[:count])


def _compare_run(
    golden: golden_run.GoldenRun, precision: str, parallel: str | None, workdir: Path | None
) -> RunReport:
    partitioner = _partitioner(golden.batch_size, parallel)
    png_path = None
    if workdir:
        png_path = _require_writable(workdir)
    computed = replay.replay(golden, jnp.dtype(precision), partitioner)
    if png_path:
        judged = golden.stable_steps if precision == "float64" else 0
        plot.draw_curves(
            png_path, golden.expected["loss/curve"], computed["loss/curve"], judged=judged
        )
    return compare.compare_run(
        golden,
        computed,
        precision,
        parallel=parallel or "one device",
        devices=len(partitioner.devices),
        plot=str(png_path) if png_path else None,
    )
