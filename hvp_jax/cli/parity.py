"""The verb `parity`: the model's numbers against those of PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp

from data.errors import UsageError
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parity import golden as golden_files
from hvp_jax.parity.report import ParityReport
from hvp_jax.parity.runs import compare, golden_run, plot, replay
from hvp_jax.parity.runs.report import RunReport

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


def _compare_run(
    golden: golden_run.GoldenRun, precision: str, parallel: str | None, workdir: Path | None
) -> RunReport:
    partitioner = Partitioner("pmap", devices=jax.devices()[:1])
    if parallel:
        fsdp = parallel == "fsdp"
        partitioner = Partitioner("shard_map" if fsdp else parallel, fsdp)
        partitioner.check_batch_size(golden.batch_size, f"{golden.path}: the batch size")
    if workdir:
        json_files.make_workdir(workdir)
    computed = replay.replay(golden, jnp.dtype(precision), partitioner)
    png_path = workdir / PLOT_FILE if workdir else None
    if png_path:
        tolerance = compare.TOLERANCE["loss/"]
        plot.draw_curves(png_path, golden.expected["loss/curve"], computed["loss/curve"], tolerance)
    return compare.compare_run(
        golden,
        computed,
        precision,
        parallel=parallel or "one device",
        devices=len(partitioner.devices),
        plot=str(png_path) if png_path else None,
    )
