"""Parity with the original: every array is compared, and every deviation is detected."""

import json
from pathlib import Path

import numpy as np
import pytest

from hvp_jax.cli.verbs import parity
from hvp_jax.parity import compare
from hvp_jax.parity import golden as golden_module
from hvp_jax.parity.golden import METADATA
from hvp_jax.parity.report import GoldenReport
from tests.helpers.command import GOLDEN, ROOT, run_command
from tests.helpers.parity_files import (
    QUICK,
    SMALL,
    changed,
    compilation_cache_variables,
    restore_settings,
    write,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

BY_RULE = GOLDEN / "pytorch_vitb32_by_rule.npz"
# Arrays of training and evaluation; a file without them needs the forward pass only.
TRAINING_OR_EVAL = ("grad", "after/", "loss/curve", "eval/")


@pytest.fixture(scope="module")
def in_float64(programs):
    """The command on the small file in float64: the finished process and its JSON."""
    done = run_command(
        ROOT / "run.py",
        "parity",
        f"--golden={SMALL}",
        "--json",
        **compilation_cache_variables(programs),
    )
    return done, json.loads(done.stdout)


def require_parity(result: dict, path: Path) -> None:
    """Every array of the file is an input or was compared, and all passed."""
    with np.load(path) as file:
        arrays = set(file.files)
    names = [row["name"] for row in result["arrays"]]
    assert len(set(names)) == len(names) == result["compared"]
    assert set(names) | set(result["inputs"]) | set(METADATA) >= arrays
    assert all(name.startswith(("input/", "eval/text", "eval/video")) for name in result["inputs"])
    assert result["ok"] and not result["failed"] and all(row["ok"] for row in result["arrays"])


def test_the_small_file_in_float64(in_float64):
    done, result = in_float64
    assert done.status == 0, done.stderr
    require_parity(result, SMALL)
    assert result["compared"] == 489 and result["precision"] == "float64"
    assert max(row["relative"] for row in result["arrays"]) < 1e-6
    metrics = [row["name"] for row in result["arrays"] if row["name"].startswith("metrics_")]
    assert len(metrics) == 12


def test_the_small_file_in_float32(run_cli):
    done = run_cli("parity", f"--golden={SMALL}", "--precision=float32", "--json", **QUICK)
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    require_parity(result, SMALL)
    for row in result["arrays"]:
        trained = row["name"].startswith(("grad", "after", "loss/curve"))
        assert row["relative"] < (1e-3 if trained else 1e-4), row


def test_the_full_size_file_by_rule(run_cli):
    # With the code generator that users have, not the one that compiles faster (conftest.py).
    done = run_cli("parity", f"--golden={BY_RULE}", "--json", XLA_FLAGS="")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    require_parity(result, BY_RULE)
    assert result["compared"] == 13


@pytest.fixture(scope="module")
def computed(in_float64, programs):
    """The model's arrays for the small file, from programs in the cache."""
    del in_float64, programs  # they fill the cache
    recorded, compute = {}, golden_module.compute_arrays

    def record(*arguments, **options):
        recorded.update(compute(*arguments, **options))
        return dict(recorded)

    with pytest.MonkeyPatch.context() as patch, restore_settings():
        patch.setattr(golden_module, "compute_arrays", record)
        assert parity.run(SMALL).ok
    return {name: np.asarray(x) for name, x in recorded.items()}


@pytest.fixture
def rerun(computed, golden, monkeypatch):
    """(changes) -> the report for the small file with some of its arrays replaced."""

    def run(changes: dict, metadata: dict | None = None) -> GoldenReport:
        arrays, original = golden
        monkeypatch.setattr(golden_module, "compute_arrays", lambda *_, **__: dict(computed))
        monkeypatch.setattr(
            golden_module, "load_golden", lambda _: (arrays | changes, metadata or original)
        )
        return parity.run(SMALL)

    return run


def test_one_percent_of_any_compared_array_is_detected(golden, rerun):
    compared = {
        name: array
        for name, array in golden[0].items()
        if not name.startswith(("state/", "input/", "eval/text", "eval/video"))
    }
    assert len(compared) == 334 and all(np.abs(array).max() > 0 for array in compared.values())
    report = rerun({name: changed(array) for name, array in compared.items()})
    assert report.failed == list(compared)
    assert {row.reason for row in report.arrays if not row.ok} == {"over tolerance"}
    assert f"{489 - 334} equal, 334 not" in report.text


@pytest.mark.parametrize("name", ["mpp/layer1/stage2/cluster", "grad_norm", "eval/similarity"])
def test_only_the_wrong_array_is_named(golden, rerun, name):
    report = rerun({name: changed(golden[0][name])})
    assert report.failed == [name] and not report.ok
    (row,) = [row for row in report.arrays if row.name == name]
    assert 0.009 < row.relative < 0.011


def test_a_token_in_another_cluster_is_detected(golden, rerun):
    clusters = golden[0]["mpp/layer0/stage0/cluster"].copy()
    clusters[1, 2] += 1 if clusters[1, 2] == 0 else -1
    assert rerun({"mpp/layer0/stage0/cluster": clusters}).failed == ["mpp/layer0/stage0/cluster"]


def test_the_metrics_of_the_json_are_compared(golden, rerun):
    metadata = json.loads(json.dumps(golden[1]))
    metadata["metrics_v2t"]["MeanR"] += 0.1
    assert rerun({}, metadata).failed == ["metrics_v2t/MeanR (.json)"]


@pytest.mark.parametrize("name", ["extra", "features/video", "mpp/layer3/out", "grad/nothing"])
def test_an_array_that_is_not_computed_fails(rerun, name):
    report = rerun({name: np.zeros(3, np.float32)})
    assert report.failed == [name]
    assert "not compared" in report.arrays[-13].reason and "not compared" in report.text


def test_an_array_of_another_shape_fails(golden, rerun):
    sentence = golden[0]["features/sentence"]
    report = rerun({"features/sentence": sentence[:, :-5]})
    assert report.failed == ["features/sentence"]
    assert "the model's array has shape [4, 32]" in report.text


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("precision", list(compare.TOLERANCE))
def test_nan_and_infinity_never_pass(precision):
    tolerance = compare.TOLERANCE[precision]
    x = np.array([1.0, 2.0])
    assert compare.compare_arrays("loss", x, x, tolerance).ok
    for bad in (np.nan, np.inf):
        y = np.array([1.0, bad])
        assert not compare.compare_arrays("loss", x, y, tolerance).ok
        assert not compare.compare_arrays("loss", y, x, tolerance).ok
        assert not compare.compare_arrays("loss", y, y, tolerance).ok


def test_subsampled_arrays():
    x = np.arange(2 * 7 * 12).reshape(2, 7, 12)
    np.testing.assert_array_equal(compare.subsample(x, (2, 7, 3)), x[:, :, ::4])
    np.testing.assert_array_equal(compare.subsample(x, (2, 2, 12)), x[:, ::4])
    assert compare.subsample(x, (2, 7, 5)).shape == x.shape  # no stride gives 5 of 12
    assert compare.subsample(x, (2, 7, 13)).shape == x.shape
    assert compare.subsample(x, (2, 7)).shape == x.shape


@pytest.fixture
def forward_file(golden, programs, tmp_path):
    """(changes) -> a copy of the small file without the arrays of training and evaluation."""
    arrays, metadata = golden

    def make(changes: dict) -> Path:
        forward = {name: x for name, x in arrays.items() if not name.startswith(TRAINING_OR_EVAL)}
        return write(tmp_path / "forward.npz", forward | changes, {"layers_zero_based": [0, 2, 3]})

    assert metadata["layers_zero_based"] == [0, 2, 3]
    return make


@pytest.mark.parametrize(
    "name",
    [
        "state/clip.visual.conv1.weight",
        "state/clip.logit_scale",
        "state/PatchListProcessing.blocks.2.pcm.score.bias",
        "input/video",
    ],
)
def test_one_percent_of_a_weight_or_an_input_is_detected(golden, forward_file, name):
    assert not parity.run(forward_file({name: changed(golden[0][name])})).ok


def test_one_percent_of_an_unused_weight_is_detected(golden, computed, tmp_path):
    """The embedding of a token in no caption: only its value after training shows it."""
    arrays, metadata = golden
    name = "state/clip.token_embedding.weight"
    row = np.abs(arrays[name]).max(axis=1).argmax()
    assert not (arrays["input/text_ids"] == row).any()
    path = write(tmp_path / "a.npz", arrays | {name: changed(arrays[name])}, metadata)
    assert parity.run(path).failed == ["after/clip.token_embedding.weight"]


def test_the_command_fails(golden, forward_file, programs, run_cli):
    path = forward_file({"more": np.ones(2), "sim/word_patch/layer1": np.ones((4, 4), np.float32)})
    done = run_cli("parity", f"--golden={path}", "--json", **compilation_cache_variables(programs))
    assert done.status == 1
    result = json.loads(done.stdout)
    assert result["failed"] == ["sim/word_patch/layer1", "more"]
    reasons = [row["reason"] for row in result["arrays"] if not row["ok"]]
    assert reasons[0] == "over tolerance" and "not compared" in reasons[1]
