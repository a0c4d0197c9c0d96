"""Files of a whole run that `parity` refuses with one line, before anything is compiled."""

import numpy as np
import pytest

from data.errors import DataError, UsageError
from hvp_jax.cli import main
from hvp_jax.cli.verbs import parity
from hvp_jax.parity.runs import replay
from hvp_jax.parity.runs.checks import CURVES
from tests.helpers.golden_runs import load_run, open_shortened, write_run
from tests.helpers.parity_files import SMALL

SHORT = 5
OPTIMIZER = load_run()[1]["optimizer"]


@pytest.fixture(autouse=True)
def no_replay(monkeypatch):
    def fail(*arguments):
        pytest.fail("the file was accepted")

    monkeypatch.setattr(replay, "replay", fail)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data/video", None, "holds no array data/video"),
        ("batches", np.zeros((SHORT, 0), np.int32), "batches is not an array of integers"),
        ("batches", lambda x: x * 1.0, "batches is not an array of integers with 2 axes"),
        ("batches", lambda x: x[:, 0], "batches is not an array of integers with 2 axes"),
        ("batches", lambda x: x + 100, "batches has values outside 0 to 159"),
        ("data/video", lambda x: x[:, :, 1:], "data/video has shape"),
        ("data/video", lambda x: x.astype(np.int32), "data/video is not uint8"),
        ("data/video_frames", lambda x: x - 3, "data/video_frames has values outside 1 to 4"),
        ("data/video_frames", lambda x: x[1:], "data/video_frames has shape [127]"),
        ("data/text_ids", lambda x: x + 1, "data/text_ids has values outside 0 to 127"),
        ("data/text_mask", lambda x: x + 1, "data/text_mask has values outside 0 to 1"),
        ("data/text_mask", lambda x: x[:, 1:], "data/text_mask has shape [160, 11]"),
        ("data/clip_of_caption", lambda x: x + 1, "clip_of_caption has values outside 0 to 127"),
        ("loss/curve", None, "holds no array loss/curve"),
        ("loss/curve", lambda x: x[1:], f"loss/curve does not have the {SHORT} steps of batches"),
        (
            "after9/clip.logit_scale",
            np.ones(()),
            "after9/ is no step of the run, which has 5",
        ),
        ("eval/similarity", np.ones((2, 2)), "test.captions is no range of the captions"),
        ("loss/curve", lambda x: x * np.nan, "loss/curve holds values that are not finite"),
        ("grad_norm", lambda x: x.astype("U9"), "grad_norm holds values that are not finite"),
        ("logit_scale", lambda x: x + 1j, "logit_scale holds values that are not finite"),
        ("state/clip.visual.proj", None, "clip.visual.proj: not among"),
        ("state/clip.visual.extra", np.ones(3), "clip.visual.extra: a tensor that"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, name, change, message):
    if callable(change):
        arrays, _ = load_run()
        change = change(arrays[name][:SHORT] if name in CURVES else arrays[name])
        change = change[:SHORT] if name == "batches" else change
    metadata = {"test": None} if name.startswith("eval/") else None
    path = write_run(tmp_path / "run.npz", SHORT, {name: change}, metadata)
    with pytest.raises(DataError) as error:
        parity.run(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"layers_zero_based": None}, "its JSON has no 'layers_zero_based'"),
        ({"layers_zero_based": [0, 4]}, "layers_zero_based is [0, 4]; the layers are 0 to 3"),
        ({"layers_zero_based": [2, 0]}, "layers_zero_based is [2, 0]"),
        ({"layers_zero_based": "0"}, "layers_zero_based is 0"),
        ({"optimizer": None}, "its JSON has no 'optimizer'"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.coef_lr is None, not a number"),
        ({"optimizer": 3}, "its JSON: optimizer is not an object"),
        ({"stable_steps": "all"}, "stable_steps is all, not a number"),
        ({"stable_steps": 3.5}, "stable_steps is 3.5, not a number"),
        ({"stable_steps": 0}, "stable_steps is 0, not a number"),
        ({"layers_zero_based": []}, "layers_zero_based is []"),
        *(
            ({"optimizer": OPTIMIZER | {key: value}}, f"optimizer.{key} is {value}, not a number")
            for key, value in (
                *(("warmup", float("nan")), ("warmup", 1.5), ("t_total", 1e300), ("b1", 10**400)),
                *(("max_grad_norm", "1"), ("max_grad_norm", None), ("lr", float("inf"))),
            )
        ),
        ({"optimizer": OPTIMIZER | {"t_total": 2.5}}, "optimizer.t_total is no number of steps"),
        ({"metrics_t2v": [1]}, "metrics_t2v is not an object"),
        ({"metrics_t2v": {"R1": "x"}}, "metrics_t2v.R1 is x, not a number"),
        ({"measured": [1]}, "measured is not an object"),
        ({"measured": {"float32": {"2": "x"}}}, "measured.float32 holds values that are not"),
        (
            {"measured": {"mean_loss_of_quarters": {"float32": [1, 2, 3]}}},
            "measured.mean_loss_of_quarters.float32 is not four numbers",
        ),
        ({"metrics_t2v": {"R1": 1.0}, "test": None}, "test.captions is no range"),
        ({"metrics_t2v": {"R1": 1.0}, "test": {"captions": [1.0, 2]}}, "test.captions is no range"),
        ({"frozen": ["clip.visual.proj"]}, "frozen is ['clip.visual.proj']"),
        ({"noise": 1e-6}, "noise is 1e-06"),
        ({"logit_scale_at_most": 5.0}, "logit_scale_at_most is 5.0"),
        ({"normalisation": {"mean": [0, 0, 0]}}, "mean is [0, 0, 0]"),
    ],
)
def test_json_that_cannot_be_replayed(tmp_path, metadata, message):
    path = write_run(tmp_path / "run.npz", SHORT, metadata=metadata)
    with pytest.raises(DataError) as error:
        parity.run(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_captions_of_other_clips_are_no_test_split(tmp_path):
    changes = {"eval/similarity": np.ones((32, 32))}
    metadata = {"test": {"captions": [120, 152], "clips": [96, 128]}}
    path = write_run(tmp_path / "run.npz", SHORT, changes, metadata)
    with pytest.raises(DataError, match="the captions of `test` are not those of its clips"):
        parity.run(path)


def test_flags_of_runs(tmp_path, capsys):
    for flag in ("--parallel=pmap", f"--workdir={tmp_path / 'out'}"):
        assert main.main(["parity", f"--golden={SMALL}", flag]) == 2
        assert f"{flag.split('=')[0]} is for golden files of a whole run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    path = write_run(tmp_path / "run.npz", SHORT)
    (tmp_path / "plots/parity_run.png").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot write .*parity_run.png: Is a directory"):
        parity.run(path, workdir=tmp_path / "plots")
    with pytest.raises(UsageError, match="is not a file"):
        parity.run(tmp_path)
    assert main.main(["parity", f"--golden={path}", "--parallel=tpu"]) == 2
    assert "invalid choice: 'tpu'" in capsys.readouterr().err


@pytest.mark.parametrize(("batch", "devices"), [(8, 8), (6, 6), (7, 7), (1, 1), (11, 1), (20, 5)])
def test_as_many_devices_as_divide_the_batch(batch, devices):
    assert len(parity._partitioner(batch, "fsdp").devices) == devices
    assert len(parity._partitioner(batch, None).devices) == 1


def test_a_run_knows_its_parts():
    run = open_shortened(SHORT)
    assert (run.steps, run.batch_size, run.taps, run.freezes_patches) == (SHORT, 8, (1, 3, 4), True)
    batch, half = run.batch(2), run.batch(2, slice(4, 8))
    assert batch.video.shape == (8, 4, 48, 48, 3) and batch.video.dtype == np.uint8
    for whole, part in zip(batch, half, strict=True):
        np.testing.assert_array_equal(whole[4:], part)
    clips = run.arrays["data/clip_of_caption"][run.arrays["batches"][2]]
    frames = run.arrays["data/video_frames"][clips]
    assert batch.video_mask.sum(axis=1).tolist() == frames.tolist()
