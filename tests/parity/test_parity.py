"""Parity with the original's numbers: every array is compared, and none can be off unseen."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from hvp_jax.cli import parity
from hvp_jax.parity import compare
from hvp_jax.parity import golden as golden_module
from hvp_jax.parity.golden import METADATA
from tests.helpers.command import GOLDEN, ROOT, run_command
from tests.helpers.parity_files import SMALL, changed, same_settings, write

pytestmark = pytest.mark.usefixtures("quick_compile")

BY_RULE = GOLDEN / "pytorch_vitb32_by_rule.npz"
# What only training or evaluation computes; without it a file takes the forward pass alone.
TRAINED = ("grad", "after/", "loss/curve", "eval/")


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as `quick_compile`, for a command


def kept_programs(folder: Path) -> dict[str, str]:
    """Settings by which JAX keeps what it compiled, so that a program is compiled once here."""
    return QUICK | {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    }


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of compiled programs, used by this process too."""
    folder = tmp_path_factory.mktemp("programs")
    names = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def in_float64(programs):
    """The command on the small file in float64: its exit status and its JSON."""
    done = run_command(
        ROOT / "run.py", "parity", f"--golden={SMALL}", "--json", **kept_programs(programs)
    )
    return done, json.loads(done.stdout)


def require_whole(result: dict, path: Path) -> None:
    """Every array of the file is an input or was compared, and all are equal."""
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
    require_whole(result, SMALL)
    assert result["compared"] == 489 and result["precision"] == "float64"
    assert max(row["relative"] for row in result["arrays"]) < 1e-6
    figures = [row["name"] for row in result["arrays"] if row["name"].startswith("metrics_")]
    assert len(figures) == 12


def test_the_small_file_in_float32(run_cli):
    done = run_cli("parity", f"--golden={SMALL}", "--precision=float32", "--json", **QUICK)
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    require_whole(result, SMALL)
    for row in result["arrays"]:
        learned = row["name"].startswith(("grad", "after", "loss/curve"))
        assert row["relative"] < (1e-3 if learned else 1e-4), row


def test_the_full_size_file_by_rule(run_cli):
    done = run_cli("parity", f"--golden={BY_RULE}", "--json")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    require_whole(result, BY_RULE)
    assert result["compared"] == 13


@pytest.fixture(scope="module")
def ours(in_float64, programs):
    """What this process computes of the small file, program by program from the cache."""
    del in_float64, programs  # the programs are there
    kept, compute = {}, golden_module.compute_arrays

    def keep(*arguments):
        kept.update(compute(*arguments))
        return dict(kept)

    with pytest.MonkeyPatch.context() as patch, same_settings():
        patch.setattr(golden_module, "compute_arrays", keep)
        assert parity.run(SMALL)["ok"]
    return {name: np.asarray(x) for name, x in kept.items()}


@pytest.fixture
def rerun(ours, golden, monkeypatch):
    """(changes) -> the result for the small file with some arrays put in the place of its own."""

    def run(changes: dict, about: dict | None = None) -> dict:
        arrays, plain = golden
        monkeypatch.setattr(golden_module, "compute_arrays", lambda *_: dict(ours))
        monkeypatch.setattr(
            golden_module, "load_golden", lambda _: (arrays | changes, about or plain)
        )
        return parity.run(SMALL)

    return run


def test_one_percent_of_any_compared_array_is_seen(golden, rerun):
    compared = {
        name: array
        for name, array in golden[0].items()
        if not name.startswith(("state/", "input/", "eval/text", "eval/video"))
    }
    assert len(compared) == 334 and all(np.abs(array).max() > 0 for array in compared.values())
    result = rerun({name: changed(array) for name, array in compared.items()})
    assert result["failed"] == list(compared)
    assert {row["reason"] for row in result["arrays"] if not row["ok"]} == {"over tolerance"}
    assert f"{489 - 334} equal, 334 not" in result["text"]


@pytest.mark.parametrize("name", ["mpp/layer1/stage2/cluster", "grad_norm", "eval/similarity"])
def test_the_array_that_is_off_is_the_one_that_is_named(golden, rerun, name):
    result = rerun({name: changed(golden[0][name])})
    assert result["failed"] == [name] and not result["ok"]
    (row,) = [row for row in result["arrays"] if row["name"] == name]
    assert 0.009 < row["relative"] < 0.011


def test_a_token_in_another_cluster_is_seen(golden, rerun):
    clusters = golden[0]["mpp/layer0/stage0/cluster"].copy()
    clusters[1, 2] += 1 if clusters[1, 2] == 0 else -1
    assert rerun({"mpp/layer0/stage0/cluster": clusters})["failed"] == ["mpp/layer0/stage0/cluster"]


def test_a_figure_of_the_json_is_compared(golden, rerun):
    about = json.loads(json.dumps(golden[1]))
    about["metrics_v2t"]["MeanR"] += 0.1
    assert rerun({}, about)["failed"] == ["metrics_v2t/MeanR (.json)"]


@pytest.mark.parametrize("name", ["extra", "features/video", "mpp/layer3/out", "grad/nothing"])
def test_an_array_that_nothing_here_computes_is_no_pass(rerun, name):
    result = rerun({name: np.zeros(3, np.float32)})
    assert result["failed"] == [name]
    assert "not compared" in result["arrays"][-13]["reason"] and "not compared" in result["text"]


def test_an_array_of_another_shape_is_no_pass(golden, rerun):
    sentence = golden[0]["features/sentence"]
    result = rerun({"features/sentence": sentence[:, :-5]})
    assert result["failed"] == ["features/sentence"]
    assert "ours is of shape [4, 32]" in result["text"]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("precision", list(compare.TOLERANCE))
def test_no_number_is_never_a_pass(precision):
    tolerance = compare.TOLERANCE[precision]
    x = np.array([1.0, 2.0])
    assert compare.compare_arrays("loss", x, x, tolerance)["ok"]
    for bad in (np.nan, np.inf):
        y = np.array([1.0, bad])
        assert not compare.compare_arrays("loss", x, y, tolerance)["ok"]
        assert not compare.compare_arrays("loss", y, x, tolerance)["ok"]
        assert not compare.compare_arrays("loss", y, y, tolerance)["ok"]


def test_thinned_arrays():
    x = np.arange(2 * 7 * 12).reshape(2, 7, 12)
    np.testing.assert_array_equal(compare.subsample(x, (2, 7, 3)), x[:, :, ::4])
    np.testing.assert_array_equal(compare.subsample(x, (2, 2, 12)), x[:, ::4])
    assert compare.subsample(x, (2, 7, 5)).shape == x.shape  # no step gives 5 of 12
    assert compare.subsample(x, (2, 7, 13)).shape == x.shape
    assert compare.subsample(x, (2, 7)).shape == x.shape


@pytest.fixture
def forward_file(golden, programs, tmp_path):
    """(changes) -> a copy of the small file without what training and evaluation compute."""
    arrays, about = golden

    def make(changes: dict) -> Path:
        kept = {name: x for name, x in arrays.items() if not name.startswith(TRAINED)}
        return write(tmp_path / "forward.npz", kept | changes, {"layers_zero_based": [0, 2, 3]})

    assert about["layers_zero_based"] == [0, 2, 3]
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
def test_one_percent_of_a_weight_or_an_input_is_seen(golden, forward_file, name):
    assert not parity.run(forward_file({name: changed(golden[0][name])}))["ok"]


def test_one_percent_of_a_weight_without_effect_is_seen(golden, ours, tmp_path):
    """The row of a token that no caption has: only the optimiser's steps tell."""
    arrays, about = golden
    name = "state/clip.token_embedding.weight"
    row = np.abs(arrays[name]).max(axis=1).argmax()
    assert not (arrays["input/text_ids"] == row).any()
    path = write(tmp_path / "a.npz", arrays | {name: changed(arrays[name])}, about)
    assert parity.run(path)["failed"] == ["after/clip.token_embedding.weight"]


def test_the_command_says_no(golden, forward_file, programs, run_cli):
    path = forward_file({"more": np.ones(2), "sim/word_patch/layer1": np.ones((4, 4), np.float32)})
    done = run_cli("parity", f"--golden={path}", "--json", **kept_programs(programs))
    assert done.status == 1
    result = json.loads(done.stdout)
    assert result["failed"] == ["sim/word_patch/layer1", "more"]
    reasons = [row["reason"] for row in result["arrays"] if not row["ok"]]
    assert reasons[0] == "over tolerance" and "not compared" in reasons[1]
