"""Sweeps as jobs of submitit's local executor."""

import json
import os
import signal
import time

import pytest

from data.errors import UsageError
from hvp_jax.sweeps.execution import cluster
from hvp_jax.sweeps.execution.runs import Run
from tests.helpers.sweeps import STUB, execute, results, start, started, write_sweep


def test_the_runs_of_a_sweep_are_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a job imports the project from elsewhere
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.syspath_prepend(str(cluster.SOURCES))
    settings = {"good": {}, "bad": {"optimizer.weight_decay": 13.0}}
    file, folder = write_sweep(tmp_path / "two.py", settings, (0, 1)), tmp_path / "sweep"
    assert execute(file, folder, cluster="local:timeout_min=5") == ["bad/seed-0", "bad/seed-1"]
    assert len(results(folder)) == 2
    assert (folder / "runs/bad/seed-1/error.txt").read_text() == "made to fail\n"
    assert sorted(started(folder)[1:]) == [f"{n}/seed-{i}" for n in ("bad", "good") for i in (0, 1)]
    jobs = json.loads((folder / "cluster/jobs.json").read_text())
    assert jobs["cluster"] == "local" and len(jobs["jobs"]) == 4
    assert execute(file, folder, cluster="local") == ["bad/seed-0", "bad/seed-1"]
    assert len(started(folder)) == 7 and started(folder).count("prepare") == 1


def test_a_job_that_ends_without_a_word_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.ClusterRun, "__reduce__", lambda self: (os._exit, (3,)))
    file, folder = write_sweep(tmp_path / "one.py", {"base": {}}, (0,)), tmp_path / "sweep"
    given = [("data.shards", str(tmp_path / "shards"))]
    assert execute(file, folder, cluster="local", changes=given) == ["base/seed-0"]
    error = (folder / "runs/base/seed-0/error.txt").read_text()
    assert error.startswith("job ") and "ended: FINISHED; see " in error


def test_before_its_time_limit_a_job_saves_and_the_next_goes_on(tmp_path):
    workdir = tmp_path / "runs/base/seed-0"
    config = {"train": {"steps": 40}, "model": {"taps": None}, "optimizer": {"weight_decay": 0}}
    config["data"] = {"max_words": 24}
    (tmp_path / "base.json").write_text(json.dumps(config))
    flags = (f"--config={tmp_path / 'base.json'}", "--config.seed=0", f"--workdir={workdir}")
    run = Run("base/seed-0", workdir, (*STUB, "train", *flags))
    job = cluster.ClusterRun(run)
    job._process = run.start()
    while not (workdir / "metrics.jsonl").exists():
        time.sleep(0.01)
    again = job.checkpoint()
    assert "stopped at step" in (workdir / "log.txt").read_text()
    assert not run.is_finished() and not run.error() and not run.holder()
    again.function()
    assert run.is_finished() and started(tmp_path) == ["base/seed-0"] * 2


SLURM = {
    "srun": "",
    "sbatch": 'cat "$1" >> {folder}/submitted; echo "Submitted batch job 12"',
    "sacct": "echo 'JobID|State|NodeList'; sed 's/$/|/' {folder}/states",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with the commands of a Slurm that runs nothing; `states` says how the jobs are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in SLURM.items():
        (folder / name).write_text("#!/bin/sh\n" + line.replace("{folder}", str(folder)) + "\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_slurm_gets_one_array_and_the_next_sweep_waits_for_the_same_jobs(tmp_path, slurm):
    file, folder = write_sweep(tmp_path / "two.py", seeds=(0,)), tmp_path / "sweep"
    shards = folder / "shards" / "4x64px-a39bfb14" / "clips" / "1.0.0"
    shards.mkdir(parents=True)
    (shards / "metadata.json").write_text('{"texts": {}}')
    options = "slurm:gpus_per_node=1,slurm_partition=gpu"
    (slurm / "states").write_text("12_0|RUNNING\n12_1|PENDING\n")
    for _ in range(2):
        sweep = start(file, folder, cluster=options)
        while not (folder / "cluster/jobs.json").exists() or not (folder / "lock.json").exists():
            assert sweep.poll() is None
            time.sleep(0.01)
        time.sleep(2)
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=30)
        assert "SIGINT; 2 jobs go on" in err
    script = (slurm / "submitted").read_text()
    assert script.count("#!/bin/bash") == 1 and "#SBATCH --array=0-1%1" in script
    assert "#SBATCH --gpus-per-node=1" in script and "#SBATCH --partition=gpu" in script
    (slurm / "states").write_text("12_0|OUT_OF_MEMORY\n12_1|COMPLETED\n")
    (slurm / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    known = cluster._known_jobs(folder, "slurm")
    assert {name: job.job_id for name, job in known.items()} == {
        "three/seed-0": "12_0", "last/seed-0": "12_1"
    }  # fmt: skip
    assert all(job.done() for job in known.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slurm:gpus", "'gpus' is not KEY=VALUE"),
        ("local:nothing=1", "Parameter 'nothing' need to be prefixed"),
        ("local:slurm_nothing=1", "Unknown argument 'nothing'"),
        ("slurm", 'Could not detect "srun"'),
        ("pbs", "doesn't know any executor named pbs"),
    ],
)
def test_options_that_submitit_does_not_know_are_refused(tmp_path, text, message):
    file, folder = write_sweep(tmp_path / "two.py"), tmp_path / "sweep"
    with pytest.raises(UsageError, match=message):
        execute(file, folder, cluster=text)
    assert started(folder) == []


def test_options_are_numbers_where_they_look_like_it():
    options = {"slurm_partition": "gpu", "gpus_per_node": 1}
    assert cluster.parse("slurm:slurm_partition=gpu,gpus_per_node=1") == ("slurm", options)
    assert cluster.parse("local") == ("local", {})
