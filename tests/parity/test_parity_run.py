"""A whole run against PyTorch's: it is followed to the end, and every deviation is detected."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.cli import main
from hvp_jax.cli.verbs import parity
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parity.compare import NotJudged
from hvp_jax.parity.runs import compare, replay
from hvp_jax.parity.runs.checks import CURVES
from hvp_jax.training.optimization import schedules
from tests.helpers.command import ROOT, run_command
from tests.helpers.golden_runs import RUN, load_run, open_shortened, write_run
from tests.helpers.parity_files import compilation_cache_variables, restore_settings

pytestmark = pytest.mark.usefixtures("quick_compile", "programs")

SHORT = 8
# Two hundred steps take longer than to compile them: XLA's loops for a convolution in float64.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


@pytest.fixture(scope="module")
def command(tmp_path_factory, programs):
    """The command on the whole run: the finished process, its JSON and its workdir."""
    workdir = tmp_path_factory.mktemp("run") / "plots"
    done = run_command(
        ROOT / "run.py",
        *("parity", f"--golden={RUN}", f"--workdir={workdir}", "--json"),
        **compilation_cache_variables(programs) | OPTIMIZED,
    )
    return done, json.loads(done.stdout), workdir


def test_two_hundred_steps_in_float64(command):
    done, result, workdir = command
    assert done.status == 0, done.stderr
    assert "200/200" in done.stderr  # the progress bar
    assert result["ok"] and not result["failed"] and result["first_out"] is None
    assert result["steps"] == result["judged_steps"] == 200 and result["precision"] == "float64"
    with np.load(RUN) as file:
        compared = {n for n in file.files if not n.startswith(("state/", "data/", "batches"))}
    rows = {row["name"]: row for row in result["arrays"]}
    assert compared <= rows.keys() and len(rows) == result["compared"] == len(compared) + 24
    for name, row in rows.items():
        # 6e-8 is the storage of weights in float32.
        limit = 1e-7 if name.startswith("after") else 1e-10
        assert row["ok"] and (name.startswith("eval/") or row["relative"] < limit), row
    assert rows["eval/similarity"]["absolute"] < 1e-10
    assert set(result["greatest_errors"]) > {"loss/curve", "weights after 200 updates"}
    assert result["plot"] == str(workdir / "parity_run.png")
    assert (workdir / "parity_run.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def computed():
    """What a short run computes in float64, for comparison with changed files."""
    with restore_settings():
        jax.config.update("jax_enable_x64", True)
        partitioner = Partitioner("pmap", devices=jax.devices()[:1])
        return replay.replay(open_shortened(SHORT), jnp.float64, partitioner)


@pytest.fixture
def report(computed, tmp_path, monkeypatch):
    """(changes) -> the report on a short run with some arrays of the file replaced."""

    def run(changes: dict | None = None, metadata: dict | None = None, replayed=computed):
        monkeypatch.setattr(replay, "replay", lambda *_: dict(replayed))
        return parity.run(write_run(tmp_path / "run.npz", SHORT, changes, metadata))

    return run


def test_a_short_run_follows(report):
    assert report().ok


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("step", [1, SHORT])
def test_one_changed_number_of_a_curve_is_found_with_its_step(report, name, step):
    curve = load_run()[0][name][:SHORT].copy()
    curve[step - 1] += 3e-5 * np.abs(curve).max()
    result = report({name: curve})
    assert not result.ok and result.failed == [name]
    (row,) = [row for row in result.arrays if not row.ok]
    assert row.step == step and row.golden == curve[step - 1]
    assert f"over tolerance from step {step}" in result.text
    assert result.text.endswith(f"FAILED: {name}")
    assert (result.first_out is not None) == (name == "loss/curve")
    if name == "loss/curve":
        assert f"leaves PyTorch's at step {step} of {SHORT}" in result.text


def test_a_float32_learning_rate_is_found(report):
    """The fault that no single step shows: a factor rounded to float32."""
    factor = load_run()[0]["lr_factor"][:SHORT]
    result = report({"lr_factor": np.float32(factor).astype(np.float64)})
    assert result.failed == ["lr_factor"]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_unknown_arrays_fail(report, computed):
    curve = load_run()[0]["loss/curve"][:SHORT].copy()
    broken = computed | {"loss/curve": np.where(np.arange(SHORT) == 4, np.nan, curve)}
    result = report(replayed=broken)
    assert result.failed == ["loss/curve"] and result.first_out.step == 5
    assert np.isnan(result.greatest_errors["loss/curve"]) and "nan" in result.text
    assert report({"loss/other": curve[:3]}).failed == ["loss/other"]
    assert report({"unknown": curve}).failed == ["unknown"]
    tensor = {f"after{SHORT}/clip.nothing": np.ones(2)}
    assert report(tensor).failed == list(tensor)


def test_steps_that_depend_on_rounding_are_shown_and_not_judged(report):
    curve = load_run()[0]["loss/curve"][:SHORT].copy()
    curve[5:] += 1
    result = report({"loss/curve": curve}, {"stable_steps": 5})
    assert result.ok and result.judged_steps == 5
    assert f"for 5 of {SHORT} steps; in the others PyTorch's own run" in result.text
    assert report({"loss/curve": curve}, {"stable_steps": 6}).first_out.step == 6


def test_one_batch_index_is_detected(tmp_path, capfd):
    batches = load_run()[0]["batches"][:SHORT].copy()
    unused = next(i for i in range(128) if i not in batches[4])
    batches[4, 2] = unused
    path = write_run(tmp_path / "run.npz", SHORT, {"batches": batches})
    assert main.main(["parity", f"--golden={path}"]) == 1
    output = capfd.readouterr().out
    assert "leaves PyTorch's at step 5 of 8" in output and "FAILED: loss/curve, " in output


def test_a_changed_rate_of_one_update_is_detected(tmp_path, monkeypatch):
    def changed(step, *arguments):
        factor = warmup_cosine(step, *arguments)
        return jnp.where(step == 3, factor * (1 + 1e-6), factor)

    warmup_cosine = schedules.warmup_cosine
    monkeypatch.setitem(schedules.SCHEDULES, "warmup_cosine", changed)
    result = parity.run(write_run(tmp_path / "run.npz", SHORT))
    rows = {row.name: row for row in result.arrays if not row.ok}
    assert rows["lr_factor"].step == 4
    assert 5e-8 < result.greatest_errors["lr_factor"] < 1e-6
    assert 1e-10 < result.greatest_errors["loss/curve"]  # and 6e-16 without the change


def test_float32_compares_means_of_quarters(tmp_path):
    path = write_run(tmp_path / "run.npz", 40)
    result = parity.run(path, precision="float32")
    assert result.ok and result.judged_steps == 0
    judged = [row.name for row in result.arrays if not isinstance(row, NotJudged)]
    assert judged == ["lr_factor", "loss/curve, means of quarters"]
    assert result.compared == 2 and "are not judged" in result.text
    runs = result.float32
    assert list(runs.greatest_error["PyTorch float32"]) == [2, 5, 10, 20, 40]
    assert runs.greatest_error["PyTorch float32"][20] == 0.002  # as recorded
    assert runs.greatest_error["JAX float32"][2] < 1e-5
    assert runs.quarters["PyTorch float64"] == pytest.approx(runs.quarters["JAX float32"], rel=0.03)
    for text in ("float32 cannot follow a curve", "PyTorch float32", "not judged in float32"):
        assert text in result.text
    curve = load_run()[0]["loss/curve"][:40].copy()
    curve[10:20] *= 1.1
    path = write_run(tmp_path / "run.npz", 40, {"loss/curve": curve})
    recorded = {name: x[:40] for name, x in load_run()[0].items() if name in CURVES}
    with mock.patch.object(replay, "replay", lambda *_: recorded):
        assert parity.run(path, precision="float32").failed == ["loss/curve, means of quarters"]
        # If PyTorch's own float32 run is as far from its float64 run, nothing is proven.
        means = compare.quarters(recorded["loss/curve"]).tolist()
        measured = {"measured": {"mean_loss_of_quarters": {"float32": means}}}
        path = write_run(tmp_path / "run.npz", 40, {"loss/curve": curve}, measured)
        assert parity.run(path, precision="float32").ok


@pytest.mark.parametrize("kind", ["pmap", "fsdp"])
def test_eight_devices_follow_the_same_curve(tmp_path, kind):
    steps = 60 if kind == "fsdp" else 12
    result = parity.run(write_run(tmp_path / "run.npz", steps), parallel=kind)
    assert result.ok, result.text
    assert (result.parallel, result.devices) == (kind, 8)
    assert result.greatest_errors["loss/curve"] < 1e-12
    if kind == "fsdp":
        assert result.greatest_errors["weights after 50 updates"] < 1e-7
