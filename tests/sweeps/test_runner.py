"""Sweeps of stub runs: what is started, skipped, resumed, refused and named."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from data.errors import UsageError
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.model_spec import HeadConfig, ModelSpec
from hvp_jax.monitoring import process_identity
from hvp_jax.sweeps import plan
from hvp_jax.sweeps.execution.stop import Stopped
from tests.helpers.command import ROOT
from tests.helpers.sweeps import execute, results, start, started, write_sweep

ALL = ["three/seed-0", "last/seed-0", "three/seed-1", "last/seed-1"]


def wait_until(condition, timeout=60.0):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout
        time.sleep(0.01)


def test_every_setting_runs_with_every_seed_and_finished_ones_are_skipped(tmp_path, capfd):
    file = write_sweep(tmp_path / "two.py")
    folder = tmp_path / "sweep"
    assert execute(file, folder) == []
    assert started(folder) == ["prepare", *ALL]  # decoded once for all
    assert [json.loads(text)["taps"] for text in results(folder).values()] == [[4]] * 2 + [None] * 2
    assert "4 of 4: last/seed-1 finished" in capfd.readouterr().err
    log = (folder / "runs/last/seed-1/log.txt").read_text()
    assert log.startswith(f"$ {sys.executable} ") and "--config.seed=1" in log
    assert execute(file, folder) == []
    assert started(folder) == ["prepare", *ALL]
    write_sweep(tmp_path / "two.py", seeds=(0, 1, 2))
    assert execute(file, folder) == []
    assert started(folder)[5:] == ["three/seed-2", "last/seed-2"]


def test_an_eval_json_of_an_unfinished_run_does_not_finish_it(tmp_path):
    file, folder = write_sweep(tmp_path / "two.py"), tmp_path / "sweep"
    execute(file, folder)
    path = folder / "runs/last/seed-0/metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert execute(file, folder) == []
    assert started(folder)[5:] == ["last/seed-0"]


def test_a_failed_run_is_named_the_others_go_on_and_it_is_tried_again(tmp_path, capfd):
    settings = {"good": {}, "bad": {"optimizer.weight_decay": 13.0}, "other": {"model.taps": (1,)}}
    file, folder = write_sweep(tmp_path / "three.py", settings, (0,)), tmp_path / "sweep"
    assert execute(file, folder, jobs=2) == ["bad/seed-0"]
    assert (folder / "runs/bad/seed-0/error.txt").read_text() == "made to fail\n"
    assert len(results(folder)) == 2
    assert "bad/seed-0 failed: made to fail (see " in capfd.readouterr().err
    assert execute(file, folder, jobs=2) == ["bad/seed-0"]
    assert started(folder).count("bad/seed-0") == 2 and len(started(folder)) == 5


def test_a_setting_whose_clips_cannot_be_decoded_fails_and_the_others_go_on(tmp_path):
    settings = {"good": {}, "bad": {"data.max_frames": 13}}
    file, folder = write_sweep(tmp_path / "two.py", settings, (0, 1)), tmp_path / "sweep"
    assert execute(file, folder) == ["bad/seed-0", "bad/seed-1"]
    error = (folder / "runs/bad/seed-1/error.txt").read_text()
    assert error == "its clips cannot be decoded: 13 frames\n"
    assert started(folder) == ["prepare", "good/seed-0", "good/seed-1"]


def test_settings_that_store_the_same_share_their_shards(tmp_path):
    settings = {"base": {}, "words": {"data.max_words": 8}, "frames": {"data.max_frames": 2}}
    settings["head"] = {"data.frame_choice": "head"}
    file, folder = write_sweep(tmp_path / "four.py", settings, (0,)), tmp_path / "sweep"
    assert execute(file, folder) == []
    assert started(folder).count("prepare") == 2
    data = {
        name: json.loads((folder / f"configs/{name}.json").read_text())["data"] for name in settings
    }
    assert data["base"]["shards"] == data["words"]["shards"] != data["frames"]["shards"]
    assert data["head"]["shards"] == ""  # shards have evenly spaced frames
    assert {fields["root"] for fields in data.values()} == {str(folder / "clips")}
    given = [("data.shards", str(tmp_path / "own"))]
    write_sweep(tmp_path / "four.py", {"base": {}}, (0,))
    assert execute(file, tmp_path / "second", changes=given) == []
    assert started(tmp_path / "second") == ["base/seed-0"]


@pytest.mark.parametrize(
    ("settings", "seeds", "steps", "difference"),
    [
        ({"three": {}}, (0, 1), 2, "it has a setting last too"),
        ({"last": {"model.taps": (4,)}, "three": {}}, (0, 1), 2, "its base setting is three, not"),
        ({"three": {}, "last": {"model.taps": (3,)}}, (0, 1), 2, "its setting last is"),
        ({"three": {}, "last": {"model.taps": (4,)}}, (0,), 2, "it has the seeds 1 too"),
        ({"three": {}, "last": {"model.taps": (4,)}}, (0, 1), 3, "config.train.steps of its"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(tmp_path, settings, seeds, steps, difference):
    folder = tmp_path / "sweep"
    execute(write_sweep(tmp_path / "two.py"), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"{folder} holds another sweep: .*{difference}"):
        execute(write_sweep(tmp_path / "two.py", settings, seeds), folder, steps=steps)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_setting_that_the_weights_do_not_fit_is_named_before_anything_starts(
    tmp_path, monkeypatch
):
    spec = ModelSpec(VARIANTS["tiny"], head=HeadConfig(stages=3), pretrained=True)
    monkeypatch.setattr(plan, "_spec_of_weights", lambda *model: spec)
    settings = {"base": {}, "one": {"distillation.stages": 1}}
    file, folder = write_sweep(tmp_path / "two.py", settings), tmp_path / "sweep"
    with pytest.raises(UsageError, match="setting one: .*stages is 1; the weights have 3"):
        execute(file, folder, changes=[("model.weights", str(tmp_path))])
    assert not folder.exists()


def test_a_workdir_in_use_is_waited_for(tmp_path, caplog):
    file, folder = write_sweep(tmp_path / "two.py", seeds=(0,)), tmp_path / "sweep"
    workdir = folder / "runs/three/seed-0"
    hold = "import sys, time, pathlib; from hvp_jax.monitoring.workdir_lock import WorkdirLock;"
    hold += "lock = WorkdirLock(pathlib.Path(sys.argv[1])); lock.attempt(); print('held', flush=1);"
    hold += "sys.stdin.read(); lock.release()"
    command = [sys.executable, "-c", hold, str(workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    sweep = start(file, folder)
    wait_until(lambda: "last/seed-0" in started(folder))
    wait_until((folder / "runs/last/seed-0/eval.json").exists)
    time.sleep(0.5)
    assert started(folder) == ["prepare", "last/seed-0"] and sweep.poll() is None
    holder.communicate(timeout=10)
    _, err = sweep.communicate(timeout=30)
    assert sweep.returncode == 0 and started(folder)[2:] == ["three/seed-0"]
    assert err.count(f"three/seed-0: waiting for process {holder.pid} on host") == 1


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
    file, folder = write_sweep(tmp_path / "two.py", seeds=(0,)), tmp_path / "sweep"
    sweep = start(file, folder, steps=400)
    wait_until(lambda: "three/seed-0" in started(folder))
    with pytest.raises(UsageError, match="is in use by another run"):
        execute(file, folder, steps=400)
    sweep.kill()
    sweep.communicate()


def in_midst(folder) -> bool:
    """Whether a run has logged a step, and not its last one."""
    return any(
        not (path.parent / "eval.json").exists() for path in folder.glob("runs/*/*/metrics.jsonl")
    )


def test_killed_twice_at_random_the_results_are_those_of_an_undisturbed_sweep(tmp_path):
    rng = random.Random(seed := random.randrange(1000))
    print("seed", seed)
    file = write_sweep(tmp_path / "two.py", seeds=(0, 1, 2))
    execute(file, tmp_path / "undisturbed", steps=20, jobs=6)
    folder = tmp_path / "killed"
    for kill in range(2):
        sweep = start(file, folder, steps=20, jobs=2)
        wait_until(lambda: in_midst(folder))
        time.sleep(rng.uniform(0, 0.5))  # a run takes a second
        sweep.kill()
        sweep.communicate()
        # The runs notice it, save and end; a second signal would have ended them before.
        wait_until(lambda: not list(folder.glob("runs/*/*/lock.json")), timeout=10)
        assert len(results(folder)) < 6, kill
    assert execute(file, folder, steps=20, jobs=2) == []
    assert results(folder) == results(tmp_path / "undisturbed")
    assert not list(folder.glob("runs/*/*/error.txt"))
    # What a run had done was not done again.
    logs = [path.read_text() for path in folder.glob("runs/*/*/log.txt")]
    assert sum("stopped at step" in text for text in logs) >= 1


def test_a_signal_stops_the_runs_which_save_and_the_next_sweep_resumes_them(tmp_path):
    file, folder = write_sweep(tmp_path / "two.py", seeds=(0,)), tmp_path / "sweep"
    sweep = start(file, folder, steps=40)
    wait_until(lambda: "three/seed-0" in started(folder))
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=30)
    assert Stopped.__name__ in err and "stopping 1 runs, which save first" in err
    workdir = folder / "runs/three/seed-0"
    assert "stopped at step" in (workdir / "log.txt").read_text()
    assert not (workdir / "error.txt").exists() and not (folder / "lock.json").exists()
    done = len((workdir / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 40 and execute(file, folder, steps=40) == []
    assert started(folder) == ["prepare", "three/seed-0", "three/seed-0", "last/seed-0"]


def test_a_second_signal_kills_the_runs(tmp_path):
    settings = {"stubborn": {"data.max_words": 13}}
    file, folder = write_sweep(tmp_path / "one.py", settings, (0,)), tmp_path / "sweep"
    sweep = start(file, folder, steps=2000)
    wait_until((folder / "runs/stubborn/seed-0/metrics.jsonl").exists)
    sweep.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert sweep.poll() is None
    sweep.send_signal(signal.SIGINT)
    sweep.communicate(timeout=20)
    holder = json.loads((folder / "runs/stubborn/seed-0/lock.json").read_text())
    wait_until(lambda: not process_identity.is_alive(holder), timeout=10)
