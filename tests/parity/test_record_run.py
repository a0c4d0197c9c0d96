"""`benchmarks/record_run.py`: PyTorch follows a recorded run, and records runs that JAX follows."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import new_run, record_run, recording, torch_run
from data import inputs, splits
from data.errors import DataError
from data.records import DatasetLocation
from data.synthetic import shapes
from hvp_jax.parity.runs.checks import CURVES
from hvp_jax.parity.runs.golden_run import GoldenRun
from tests.helpers.command import GOLDEN, ROOT, run_command
from tests.helpers.parity_files import write

RUN = GOLDEN / "run_small.npz"
STEPS = 25
SIZES = {"steps": 6, "batch_size": 3, "train_clips": 5, "test_clips": 3, "frames": 3}
SIZES |= {"words": 7, "image_size": 32, "patch_size": 16, "layers": 2, "embed_dim": 16}


@pytest.fixture(scope="module", name="small")
def first_steps_of_run_small() -> GoldenRun:
    """The first steps of the recorded run; without its scores, which are of the last step."""
    run = recording.open_run(RUN)
    arrays = {
        name: x[:STEPS] if name in (*CURVES, "batches") else x
        for name, x in run.arrays.items()
        if not name.startswith(("after", "eval/"))
    }
    metadata = {key: x for key, x in run.metadata.items() if not key.startswith("metrics")}
    return dataclasses.replace(run, arrays=arrays, metadata=metadata)


@pytest.fixture(scope="module", name="clips")
def built_in_clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "clips"
    shapes.make_dataset(str(root), train=7, val=0, test=4)
    return root


@pytest.fixture(scope="module", name="recorded")
def new_recording(clips, tmp_path_factory) -> tuple[Path, str]:
    """A run of the command on video files: the file and the output."""
    path = tmp_path_factory.mktemp("recorded") / "run.npz"
    flags = (f"--{name}={value}" for name, value in SIZES.items())
    done = run_command(
        ROOT / "benchmarks/record_run.py", f"--output={path}", f"--root={clips}", *flags
    )
    assert done.status == 0, done.stderr
    return path, done.stdout


def test_pytorch_follows_the_recorded_run(small):
    computed = torch_run.replay(small, torch.float64)
    for name, golden in small.expected.items():
        error = np.abs(computed[name] - golden).max() / np.abs(golden).max()
        assert error < 1e-9, name
    assert set(small.expected) == set(CURVES)


def test_a_replay_with_a_wrong_constant_is_refused(small, tmp_path, capsys):
    optimizer = small.metadata["optimizer"] | {"weight_decay": 0.1}
    path = write(tmp_path / "run.npz", small.arrays, small.metadata | {"optimizer": optimizer})
    assert record_run.main([f"--replay={path}"]) == 1
    assert "the loss leaves PyTorch's at step 3 of 25" in capsys.readouterr().out


def test_jax_follows_a_new_recording(recorded, run_cli):
    path, output = recorded
    assert f"{path}: 6 steps" in output
    done = run_cli("parity", f"--golden={path}", "--json")
    assert done.status == 0, done.stdout
    result = json.loads(done.stdout)
    # 8 curves, 12 tensors after 1, 3 and 6 updates, 2 tables of scores, 4 groups of 6 metrics.
    assert (result["compared"], result["judged_steps"]) == (8 + 3 * 12 + 2 + 24, 6)
    assert result["greatest_errors"]["loss/curve"] < 1e-9


def test_the_content_of_a_new_recording(recorded):
    run = recording.open_run(recorded[0])
    arrays, metadata = run.arrays, run.metadata
    assert run.clip_config.image_size == 32 and run.taps == (1, 2) and run.batch_size == 3
    assert arrays["data/video"].shape == (8, 3, 32, 32, 3)
    assert arrays["data/video_frames"].tolist() == [3, 3, 3, 2, 3, 3, 3, 3]
    assert not arrays["data/video"][3, 2].any()
    assert arrays["data/text_ids"].max(axis=1).tolist() == [127] * 13  # every caption has its end
    assert set(arrays["data/text_ids"][:, 0]) == {126}
    assert metadata["train"] == {"clips": [0, 5], "captions": [0, 10]}
    assert list(metadata["measured"]["float32"]) == ["2", "5", "6"]
    assert metadata["stable_steps"] == 6
    assert not np.array_equal(arrays["loss/curve"], arrays["loss/curve_perturbed"])
    computed = torch_run.record(run, torch.float64, {})
    np.testing.assert_allclose(computed["loss/curve"], arrays["loss/curve"], rtol=1e-12)


def test_a_replay_can_be_recorded(recorded, tmp_path, capsys):
    path = tmp_path / "again.npz"
    assert record_run.main([f"--replay={recorded[0]}", f"--output={path}"]) == 0
    assert "the loss follows PyTorch's for 6 of 6 steps" in capsys.readouterr().out
    first, again = (recording.open_run(file) for file in (recorded[0], path))
    assert again.arrays.keys() == first.arrays.keys()
    for name, x in first.arrays.items():
        np.testing.assert_allclose(again.arrays[name], x, rtol=1e-6, atol=1e-9, err_msg=name)
    assert again.metadata.keys() == first.metadata.keys()


def test_batches_have_a_clip_once():
    clip_of_caption = np.array([0, 0, 1, 1, 2, 3, 3])
    batches = new_run.draw_batches(clip_of_caption, 50, 3, seed=1)
    rng = np.random.default_rng(1)
    for batch in batches:
        taken: list[int] = []
        for caption in rng.permutation(7):
            if clip_of_caption[caption] not in clip_of_caption[taken]:
                taken.append(caption)
        assert batch.tolist() == taken[:3]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ([], 2, "give --output=NEW.npz for a new run, --replay=FILE.npz, or both"),
        (["--outptu=a.npz"], 2, "unrecognized arguments: --outptu=a.npz"),
        (["--output={tmp}/a.txt"], 2, "a.txt must end in .npz"),
        (["--output={tmp}/no/a.npz"], 2, "no is no folder that can be written to"),
        (["--output={tmp}/old.npz"], 2, "old.npz exists; name a new file"),
        (["--output={tmp}/a.npz", "--steps=0"], 2, "--steps: 0 is not above 0"),
        (["--output={tmp}/a.npz", "--steps=3"], 2, "--steps is 3; a recording needs 4 or more"),
        (["--output={tmp}/a.npz", "--steps=x"], 2, "--steps: invalid int value: 'x'"),
        (["--output={tmp}/a.npz", "--learning_rate=nan"], 2, "nan is not above 0"),
        (["--output={tmp}/a.npz", "--width=100"], 2, "--width is 100; it must be a multiple of 64"),
        (["--output={tmp}/a.npz", "--image_size=40"], 2, "it must be a multiple of 16"),
        (["--output={tmp}/a.npz", "--train_clips=4"], 2, "--batch_size is 8, of 4 --train_clips"),
        (["--output={tmp}/a.npz", "--frames=1", "--patch_size=48"], 2, "use more --frames"),
        (["--output={tmp}/a.npz", "--words=2"], 2, "--words is 2; start, one token and end"),
        (["--output={tmp}/a.npz", "--root={clips}"], 1, "7 clips of train can be used, 96 are"),
        (["--replay={tmp}/none.npz"], 2, "none.npz: no such golden file"),
        (["--replay=tests/golden/pytorch_small.npz"], 1, "is no golden file of a whole run"),
        (["--replay=tests/golden/run_small.npz", "--seed=1"], 2, "--seed is for a new run"),
    ],
)
def test_bad_input_gives_one_line(flags, status, message, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "old.npz").touch()
    assert record_run.main([flag.format(tmp=tmp_path, clips=clips) for flag in flags]) == status
    captured = capsys.readouterr()
    error = captured.err.split("\r")[-1]  # after the progress bar
    assert message in error and error.count("error: ") == 1 and captured.out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["old.npz"]


def test_an_interrupt_gives_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(new_run, "make_run", interrupt)
    assert record_run.main([f"--output={tmp_path / 'a.npz'}"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_clips_with_equal_frames_are_left_out(clips, monkeypatch, capsys):
    flags = [f"--{name}={value}" for name, value in SIZES.items()]
    args = record_run.parse(["--output=a.npz", *flags])
    location = DatasetLocation("shapes", root=str(clips))
    train = splits.clips_of_split(inputs.read_dataset(location), "train")
    still, short = train[1].clip_id, train[2].clip_id
    read = new_run.FileFrames.__getitem__

    def changed(source, clip_id):
        frames = read(source, clip_id)
        return {still: frames[[0, 0, 1]], short: frames[:1]}.get(clip_id, frames)

    monkeypatch.setattr(new_run.FileFrames, "__getitem__", changed)
    decoded = new_run.decode(train, args, 3, "root")
    assert [clip for clip, _ in decoded] == [train[0], *train[3:5]]
    output = capsys.readouterr().out
    assert output == "clips of train left out, because frames are equal or too few: 2\n"
    with pytest.raises(DataError, match="root: 5 clips of train can be used, 6 are needed"):
        new_run.decode(train, args, 6, "root")
